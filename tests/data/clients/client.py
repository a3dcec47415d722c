"""A program that knows nothing of the mesh. First argument: what to do; see `main` at the end."""

import asyncio
import json
import os
import select
import socket
import sys
import time


def say(**what):
    print(json.dumps(what), flush=True)


def name_of(sock):
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def get(sock):
    sock.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    answer = b""
    while part := sock.recv(65536):
        answer += part
    return answer.split(b"\r\n\r\n", 1)[1].decode()


def blocking(host, port):
    with socket.socket(family(host)) as sock:
        sock.settimeout(10)
        sock.connect((host, int(port)))
        say(peer=name_of(sock), body=get(sock))


def mapped(host, port):
    """IPv4 inside an IPv6 socket."""
    with socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(10)
        sock.connect((f"::ffff:{host}", int(port)))
        say(peer=name_of(sock), body=get(sock))


def nonblocking(host, port):
    with socket.socket(family(host)) as sock:
        sock.setblocking(False)
        error = sock.connect_ex((host, int(port)))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        assert poll.poll(10000), "no answer to the connect"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        sock.settimeout(10)
        say(peer=name_of(sock), body=get(sock), pending=error != 0)


def asyncio_many(host, port, count):
    async def one():
        reader, writer = await asyncio.open_connection(host, int(port))
        peer = name_of(writer.get_extra_info("socket"))
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return peer, answer.split(b"\r\n\r\n", 1)[1].decode()

    async def all_of_them():
        for peer, body in await asyncio.gather(*(one() for _ in range(int(count)))):
            say(peer=peer, body=body)

    asyncio.run(all_of_them())


def hold(host, port):
    """One call on a connection that is then held until we are killed."""
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        say(local="%s:%d" % sock.getsockname()[:2], got=len(sock.recv(65536)), pid=os.getpid())
        while True:
            time.sleep(3600)


def callers(host, port):
    """A call on a fresh connection every few milliseconds, for ever: when it began and what came of it."""
    while True:
        began = time.time()
        try:
            with socket.create_connection((host, int(port)), 5) as sock:
                what = get(sock)
        except OSError as error:
            what = f"error {type(error).__name__}"
        except IndexError:
            what = "error cut"
        say(ms=int(began * 1000), what=what)
        time.sleep(0.005)


def main(verb, *args):
    verbs = [blocking, mapped, nonblocking, asyncio_many, hold, callers]
    {f.__name__: f for f in verbs}[verb](*args)


main(*sys.argv[1:])
