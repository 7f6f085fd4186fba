"""A real browser without a window, driven over the DevTools protocol: what it shows, says and asks for."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
from websockets.sync.client import connect

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"),
    *("--disable-default-apps", "--disable-extensions", "--no-default-browser-check", "--remote-debugging-port=0"),
    *("--disable-dev-shm-usage", "--disable-features=OptimizationHints,MediaRouter,Translate"),
]


class Browser:
    """One Chromium; each page is a tab of its own."""

    def __init__(self, folder):
        self._folder = Path(folder)
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium is installed")
        self._log = (self._folder / "log").open("wb")
        command = [program, *_FLAGS, f"--user-data-dir={folder}/profile", "about:blank"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self._held = ExitStack()
        self._socket = self._held.enter_context(connect(self._address(), max_size=2**26, open_timeout=30))
        self._numbers, self._replies, self._pages = count(1), {}, {}

    def _address(self):
        file = self._folder / "profile" / "DevToolsActivePort"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.05)
        raise AssertionError("Chromium has not started within a minute")

    def call(self, method, session=None, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps({**message, "sessionId": session} if session else message))
        while number not in self._replies:
            self.listen(30)
        reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def listen(self, timeout):
        """Take one message, if one comes in time."""
        try:
            message = json.loads(self._socket.recv(timeout=timeout))
        except TimeoutError:
            return
        if "id" in message:
            self._replies[message["id"]] = message
        elif page := self._pages.get(message.get("sessionId")):
            page.hear(message["method"], message["params"])

    @contextmanager
    def page(self, url="about:blank", *, width=1280, height=900, dark=False):
        """Offer a new page; at its end nothing may have gone wrong in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.prefer(dark=dark)
        page.go(url)
        try:
            yield page
            page.check()
        finally:
            del self._pages[session]
            self.call("Target.closeTarget", targetId=target)

    def close(self):
        try:
            self.call("Browser.close")
        finally:
            self._held.close()
            self._process.wait(20)
            self._log.close()


class Page:
    """A page; holds what it asked for and what went wrong in it."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session
        self.requests, self.errors, self.expected = [], [], ()
        self._url = ""

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def hear(self, method, parameters):
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(each.get("value")) for each in parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def go(self, url):
        self._url = url
        self.call("Page.navigate", url=url)

    def resize(self, width, height=900):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, *, dark):
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self):
        return self.evaluate("document.body.innerText")

    def wait_for(self, expression, timeout=40.0):
        """Wait until a JavaScript expression is true, which it is not while there is nothing that it is about."""
        until = time.monotonic() + timeout
        guarded = f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"
        while time.monotonic() < until:
            try:
                if self.evaluate(guarded):
                    return
            except AssertionError:  # the page was just left for another one
                pass
            self._browser.listen(0.05)
        raise AssertionError(f"{expression} is not true of:\n{self.text()}\n{self.errors}")

    def wait_for_text(self, text, timeout=40.0):
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})", timeout)

    def click(self, selector):
        self.wait_for(f"document.querySelector({json.dumps(selector)}) !== null")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector, text):
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{found} !== null")
        self.evaluate(f"{found}.value = {json.dumps(text)}; {found}.dispatchEvent(new Event('input'))")

    def open_panel(self, name):
        self.click(f"[data-panel={name}]")

    def picture(self, path, *, whole=False):
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(content))

    def check_access(self):
        """Return what axe-core finds wrong of serious or critical weight; nothing is as it should be."""
        self.evaluate(AXE.read_text(encoding="utf-8") + ";0")
        program = "axe.run({resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
        found = json.loads(self.evaluate(program))
        return [
            (each["id"], each["help"], node["html"][:200], node.get("failureSummary", "")[:300])
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def is_too_wide(self):
        """Return whether the page can be scrolled sideways."""
        return self.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def check(self):
        """Fail if the console has errors, or anything but the page's own address was asked for."""
        origin = "/".join(self._url.split("/")[:3])
        others = [url for url in self.requests if not url.startswith((origin + "/", "about:", "data:"))]
        errors = [error for error in self.errors if not any(words in error for words in self.expected)]
        assert not others
        assert not errors


@contextmanager
def chromium():
    """Offer a browser with a fresh profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        try:
            yield browser
        finally:
            browser.close()
