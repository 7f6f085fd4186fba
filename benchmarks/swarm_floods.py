"""What strangers do to a server in `benchmarks/swarm.py`, from processes of their own."""

import contextlib
import multiprocessing
import os
import socket
import sys
import threading
import time

import grpc

_SILENT, _WATCHING, _LARGE = 5000, 2500, 250 * 2**20


def _silent(address, _roots):
    host, port = address.split(":")
    kept = []
    while True:
        while len(kept) < _SILENT:
            try:
                kept.append(socket.create_connection((host, int(port)), timeout=5))
            except OSError:
                time.sleep(0.1)
        time.sleep(1)
        alive = []
        for each in kept:
            each.setblocking(False)
            try:
                is_open = each.recv(1) != b""
            except BlockingIOError:
                is_open = True
            except OSError:
                is_open = False
            if is_open:
                alive.append(each)
            else:
                each.close()
        kept = alive


def _channel(address, roots, **options):
    credentials = grpc.ssl_channel_credentials(roots)
    sizes = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(address, credentials, sizes, **options)


def _watch(address, roots):
    channels = [_channel(address, roots) for _ in range(25)]
    while True:
        watching = [
            each.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
            for each in channels
            for _ in range(_WATCHING // len(channels))
        ]
        for each in watching:
            with contextlib.suppress(grpc.RpcError):
                next(each)
        time.sleep(1)


def _large(address, roots, **options):
    def push():
        with _channel(address, roots, **options) as channel:
            while True:
                with contextlib.suppress(grpc.RpcError):
                    channel.unary_unary("/flwr.proto.Fleet/PushMessages")(bytes(_LARGE), timeout=60)
                time.sleep(1)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()


def _compressed(address, roots):
    _large(address, roots, compression=grpc.Compression.Gzip)


def _calls(address, roots):
    channels = [_channel(address, roots) for _ in range(8)]
    while True:
        calls = [each.unary_unary("/flwr.proto.Fleet/PullMessages").future(b"", timeout=30) for each in channels * 20]
        for each in calls:
            with contextlib.suppress(grpc.RpcError):
                each.result()


def _aside(target, address, roots):
    os.nice(19)  # strangers have machines of their own: their work is not to be measured
    target(address, roots)


@contextlib.contextmanager
def _process(target, address, roots):
    process = multiprocessing.get_context("spawn").Process(target=_aside, args=(target, address, roots), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _flood(target):
    return lambda address, roots: _process(target, address, roots)


FLOODS = {
    f"{_SILENT} connections that say nothing": _flood(_silent),
    f"{_WATCHING} streams that watch the health": _flood(_watch),
    "4 calls of 250 MB without a key": _flood(_large),
    "the same, compressed to 250 KB": _flood(_compressed),
    "calls without a key, 160 at a time": _flood(_calls),
}

if __name__ == "__main__":
    sys.exit("to be run by benchmarks.swarm")
