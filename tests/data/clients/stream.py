"""Both ends of connections that must arrive as they left. First argument: what to do; see `main` at the end."""

import errno
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time


def say(**what):
    # One write: several threads speak.
    os.write(1, (json.dumps(what) + "\n").encode())


def connect(host, port, timeout=10):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(timeout)
    sock.connect((host, int(port)))
    return sock


def serve(name, host="127.0.0.1", port="0"):
    """Says its address. Answers `name` with its name, `echo` with everything that follows."""

    def one(sock):
        try:
            # Non-blocking underneath.
            sock.settimeout(600)
            asked = b""
            while not asked.endswith(b"\n"):
                part = sock.recv(1)
                if not part:
                    return
                asked += part
            if asked == b"name\n":
                sock.sendall(name.encode())
                sock.recv(1)
                return
            sock.sendall(name.encode() + b"\n")
            while part := sock.recv(1 << 16):
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            sock.close()

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen(512)
    say(at="%s:%d" % listener.getsockname()[:2])
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=one, args=(sock,), daemon=True).start()


def streams(host, port, count):
    """Sends the same bytes that everyone can compute over `count` connections, all the time, and compares
    what comes back. On SIGTERM closes its half and says how each connection ended."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def blocks(seed):
        numbers = random.Random(seed)
        while True:
            yield numbers.randbytes(numbers.choice([1, 100, 1448, 4096, 30000]))

    def send(sock, seed, sent):
        for block in blocks(seed):
            if stop.is_set():
                break
            sock.sendall(block)
            sent[0] += len(block)
            stop.wait(0.002)
        sock.shutdown(socket.SHUT_WR)

    def one(seed):
        sock = connect(host, port, 60)
        sock.sendall(b"echo\n")
        file = sock.makefile("rb")
        name, sent, got, wrong = file.readline().decode().strip(), [0], 0, None
        sender = threading.Thread(target=send, args=(sock, seed, sent))
        sender.start()
        say(connected=seed, to=name)
        try:
            for block in blocks(seed):
                back = file.read(len(block))
                got += len(back)
                if back != block[: len(back)]:
                    wrong = "bytes from %d on differ" % (got - len(back))
                if len(back) < len(block) or wrong:
                    break
        except OSError as error:
            wrong = str(error)
        stop.wait()
        sender.join()
        say(ended=seed, to=name, sent=sent[0], got=got, wrong=wrong)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def survivors(host, port, count):
    """`count` times at once and for ever: opens a connection without blocking, sends a stream whose length everyone
    knows and compares what comes back, and says how that ended: `whole`, the error's name, or `cut` where the
    other end claims to be done."""

    def one(seed):
        numbers = random.Random(seed)
        while True:
            total, got, sent = numbers.choice([1000, 300_000, 3_000_000]), 0, 0
            data, name, end, wrong = numbers.randbytes(total), "", "whole", None
            began = time.time()
            try:
                sock = connect(host, port, 30)
            except OSError as error:
                say(ms=int(began * 1000), connect=errno.errorcode.get(error.errno, str(error)))
                time.sleep(0.02)
                continue
            say(ms=int(began * 1000), connect="ok")
            try:
                sock.sendall(b"echo\n")
                while not name.endswith("\n"):
                    part = sock.recv(1)
                    if not part:
                        raise EOFError
                    name += part.decode()
                sock.setblocking(False)
                while got < total:
                    wants = [sock] if sent < total and sent - got < 1 << 20 else []
                    readable, writable, _ = select.select([sock], wants, [], 30)
                    if not readable and not writable:
                        raise TimeoutError(errno.ETIMEDOUT, "hangs")
                    if writable:
                        try:
                            sent += sock.send(data[sent : sent + numbers.choice([1, 100, 1448, 30000, 200000])])
                        except BlockingIOError:
                            pass
                    if readable:
                        try:
                            back = sock.recv(1 << 16)
                        except BlockingIOError:
                            continue
                        if not back:
                            raise EOFError
                        if back != data[got : got + len(back)]:
                            wrong = "bytes from %d on differ" % got
                            break
                        got += len(back)
            except EOFError:
                end = "cut"
            except OSError as error:
                end = errno.errorcode.get(error.errno, str(error))
            sock.close()
            say(ms=int(began * 1000), to=name.strip(), end=end, got=got, sent=sent, total=total, wrong=wrong)

    for seed in range(int(count)):
        threading.Thread(target=one, args=(seed,), daemon=True).start()
    signal.pause()


def ask(host, port, timeout=5):
    try:
        with connect(host, port, timeout) as sock:
            sock.sendall(b"name\n")
            return sock.recv(64).decode()
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def sink(host="127.0.0.1", port="0"):
    """Says its address. Takes connections, reads what comes until the other end closes, closes."""
    many_files()
    listener = socket.create_server((host, int(port)), backlog=4096)
    listener.setblocking(False)
    say(at="%s:%d" % listener.getsockname()[:2])
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_ones = {}
    while True:
        for fd, _ in poll.poll():
            try:
                if fd == listener.fileno():
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    open_ones[sock.fileno()] = sock
                    poll.register(sock, select.EPOLLIN)
                elif not open_ones[fd].recv(1 << 16):
                    open_ones.pop(fd).close()
            except BlockingIOError:
                pass
            except OSError:
                open_ones.pop(fd).close()


def churn(host, port, rounds, width):
    """Opens `width` connections, says a word on each and closes them, every other one by a reset; `rounds`
    times."""
    many_files()
    reset = struct.pack("ii", 1, 0)
    for _ in range(int(rounds)):
        socks = []
        for n in range(int(width)):
            sock = connect(host, port)
            sock.sendall(b"word")
            if n % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            socks.append(sock)
        for sock in socks:
            sock.close()
    say(made=int(rounds) * int(width))


def many_files():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def asks(host, port):
    """Asks for the name on a fresh connection every few milliseconds, for ever: when, and what came of it."""
    while True:
        began = time.time()
        say(ms=int(began * 1000), what=ask(host, port))
        time.sleep(0.005)


def calls(host, port, count, timeout="5"):
    """Asks `count` times."""
    for _ in range(int(count)):
        say(what=ask(host, port, float(timeout)))


def idle(host, port):
    """Asks on a connection that is then held; says how it ends."""
    with connect(host, port) as sock:
        sock.sendall(b"name\n")
        say(to=sock.recv(64).decode(), pid=os.getpid())
        sock.settimeout(None)
        try:
            say(end="more" if sock.recv(64) else "end")
        except OSError as error:
            say(end=errno.errorcode[error.errno])


def main(verb, *args):
    verbs = [serve, sink, streams, survivors, churn, asks, calls, idle]
    {f.__name__: f for f in verbs}[verb](*args)


main(*sys.argv[1:])
