"""The files that put NuFed on machines are what their own tools accept, name what exists and grant no more than needed.

Each is checked by its own tool where that is installed: hadolint, docker compose, systemd-analyze, kubectl kustomize
with the API's schemas. What the tools cannot know is checked here.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nufed.deploy.commands.cli import app
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/machines"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNITS = ["nufed-server.service", "nufed-client@.service"]
SITES = ["server", "client"]
API_VERSION = "1.32"


def run(*command, **options):
    """Return a finished command; it must not fail."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done


def tool(*names):
    """Return the path of the first of these programs that is installed, or skip."""
    beside = str(Path(sys.executable).parent)
    found = [path for name in names if (path := shutil.which(name, path=f"{beside}:{os.environ['PATH']}"))]
    return found[0] if found else pytest.skip(f"none of {', '.join(names)} is installed")


def refuse_what_nufed_does_not_know(arguments):
    """Parse a command line of `nufed` as the program does, without running it."""
    command = typer.main.get_command(app).commands[arguments[0]]
    command.make_context(f"nufed {arguments[0]}", [*arguments[1:]])


def instructions(name):
    text = re.sub(r"\\\n", "", (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8"))
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def constraints():
    lines = (DEPLOY / "docker/constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_hadolint_finds_nothing_in_the_dockerfile():
    run(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "docker/Dockerfile")


def test_the_image_has_every_package_that_the_project_installs_and_its_context_has_all_that_is_copied():
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    ignore = (DEPLOY / "docker/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

    names = {package.removeprefix("nufed.").split(".")[0] for package in packages}
    folders = {name for name in names if (ROOT / name).is_dir()} | {"nufed"}
    assert folders <= {source.rstrip("/") for source in sources}
    assert all((ROOT / source).exists() for source in sources)
    assert all({f"!{source.split('/')[0]}", f"!{source.split('/')[0]}/**"} & {*ignore} for source in sources)


def test_images_run_as_nobody_in_particular():
    users = instructions("USER")

    assert users == ["10001:10001"]


def test_the_pinned_versions_cover_the_projects_requirements_and_fulfil_them():
    pinned = constraints()

    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


@cache
def compose_file():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def services():
    return compose_file()["services"]


def clients():
    return {name: service for name, service in services().items() if name != "server"}


def test_docker_compose_accepts_the_file_and_finds_what_nufed_certs_made(tmp_path):
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = ["docker", "compose"]
    else:
        command = [tool("docker-compose")]
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["server"])
    for name in clients():
        add_client(folder, name)

    shown = run(
        *command, "--file", DEPLOY / "compose.yaml", "config", env={**os.environ, "FEDERATION": str(tmp_path)}
    ).stdout

    files = [Path(secret["file"]) for secret in yaml.safe_load(shown)["secrets"].values()]
    assert len(files) == 3 + len(clients())
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in files)


@pytest.mark.parametrize("name", sorted(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]))
def test_every_service_runs_a_command_that_exists_with_limits_and_without_rights(name):
    service = services()[name]

    refuse_what_nufed_does_not_know(service["command"])
    assert service["user"].startswith("${NUFED_USER:-1000:")
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {*service["deploy"]["resources"]["limits"]} == {"cpus", "memory"}
    assert service["build"]["target"] == ("server" if name == "server" else "client")
    assert service["image"].endswith(f":{PROJECT['version']}")


def test_only_the_fleet_port_is_published():
    assert [service["ports"] for service in services().values() if "ports" in service] == [
        ["${NUFED_LISTEN:-0.0.0.0}:9092:9092"]
    ]
    assert "--listen=0.0.0.0:9092" in services()["server"]["command"]
    assert "--health=127.0.0.1:9093" in services()["server"]["command"]
    assert services()["server"]["healthcheck"]["test"][-1] == "127.0.0.1:9093"


def test_each_client_sees_its_own_data_and_key_alone_and_reaches_nothing_but_the_server():
    assert len(clients()) == 3
    for name, service in clients().items():
        assert service["volumes"] == [f"${{FEDERATION:-./federation}}/data/{name}:/data:ro"]
        assert [secret["source"] for secret in service["secrets"]] == ["ca-crt", f"{name}-key"]
        assert service["networks"] == ["federation"]
    assert compose_file()["networks"]["federation"]["internal"] is True
    assert not any("data/" in volume or "ca.key" in volume for volume in services()["server"]["volumes"])


def unit_lines(name):
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "systemd" / name).read_text(encoding="utf-8"))
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def installed_units(tmp_path):
    """The units, with the program where the tests have it."""
    program = str(Path(sys.executable).parent / "nufed")
    for name in UNITS:
        text = (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/nufed/bin/nufed", program), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit_and_calls_it_well_protected(name, installed_units):
    analyze = tool("systemd-analyze")

    verified = run(analyze, "verify", installed_units / name)
    run(analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", installed_units / name)

    assert verified.stderr == ""


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_a_command_that_exists_reads_keys_as_credentials_and_is_restarted(name):
    lines = unit_lines(name)
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    program, *arguments = shlex.split(start)

    assert program == "/opt/nufed/bin/nufed"
    refuse_what_nufed_does_not_know(arguments)
    assert {"DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= {*lines}
    assert ("Restart=always" if "client" in name else "Restart=on-failure") in lines
    credentials = [line.partition("=")[2].partition(":")[0] for line in lines if line.startswith("LoadCredential=")]
    used = re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", "\n".join(lines))
    assert sorted(credentials) == sorted(used)


def manifests(site):
    """The documents of a site's files as they stand, by kind."""
    files = sorted((DEPLOY / "kubernetes" / site).glob("*.yaml"))
    return {document["kind"]: document for path in files for document in yaml.safe_load_all(path.read_text())}


@pytest.fixture(scope="module", params=SITES)
def rendered(request, tmp_path_factory):
    """What kustomize makes of a site's folder with certificates that `nufed certs` made."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(DEPLOY / "kubernetes" / request.param, folder, dirs_exist_ok=True)
    certificates = CertificateFolder(folder / "certs")
    create_authority(certificates, ["fl.example.org"])
    for name in ("client-a", "client-b"):
        add_client(certificates, name)
    (folder / "run.toml").write_text('name = "hospitals"\n')
    shutil.copy(certificates.authority_certificate, folder / "ca.crt")
    shutil.copy(certificates.client_key("client-a"), folder / "client-a.key")
    return [*yaml.safe_load_all(run(kubectl, "kustomize", folder).stdout)]


def test_the_api_schemas_accept_every_object(rendered):
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

    for document in rendered:
        schemas.validate(document, API_VERSION, strict=True)
    assert len(rendered) >= 5


def test_selectors_select_and_names_lead_to_objects(rendered):
    (pod,) = [document["spec"]["template"] for document in rendered if document["kind"] in ("Job", "Deployment")]
    selectors = [
        spec.get("selector", {}).get("matchLabels")
        or spec.get("podSelector", {}).get("matchLabels")
        or spec["selector"]
        for document in rendered
        if document["kind"] in ("Service", "NetworkPolicy", "Deployment") and (spec := document["spec"])
    ]
    there = {(document["kind"], document["metadata"]["name"]) for document in rendered} | {
        ("PersistentVolumeClaim", "nufed-data")
    }

    assert all(selector.items() <= pod["metadata"]["labels"].items() for selector in selectors)
    for volume in pod["spec"]["volumes"]:
        for key, kind, name in (
            ("secret", "Secret", "secretName"),
            ("configMap", "ConfigMap", "name"),
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ):
            assert key not in volume or (kind, volume[key][name]) in there
    assert pod["spec"]["containers"][0]["image"].endswith(f":{PROJECT['version']}")


def test_the_certificate_authoritys_private_key_stays_at_home(rendered):
    secrets = [document["data"] for document in rendered if document["kind"] == "Secret"]

    assert [sorted(data) for data in secrets] in ([["tls.crt", "tls.key"]], [["ca.crt", "client.key"]])


@pytest.mark.parametrize("site", SITES)
def test_pods_run_a_command_that_exists_with_limits_and_without_rights(site):
    pod = next(
        doc["spec"]["template"]["spec"] for kind, doc in manifests(site).items() if kind in ("Job", "Deployment")
    )
    (container,) = pod["containers"]

    refuse_what_nufed_does_not_know(container["args"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {*container["resources"]["limits"]} == {"cpu", "memory"}


def test_the_server_is_probed_where_it_tells_its_health_and_reached_at_the_fleet_port_alone():
    documents = manifests("server")
    (container,) = documents["Job"]["spec"]["template"]["spec"]["containers"]

    assert "--health=0.0.0.0:9093" in container["args"]
    assert {container[f"{kind}Probe"]["grpc"]["port"] for kind in ("startup", "readiness", "liveness")} == {9093}
    assert [port["port"] for port in documents["Service"]["spec"]["ports"]] == [9092]
    assert documents["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9092}]}]
