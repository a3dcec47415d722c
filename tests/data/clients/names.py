"""Asks for names as small resolvers do; says on standard output what came back, or fails.

    names.py ask HOW RESOLVER NAME [TYPE]   HOW: sendto, mapped, six or connected
    names.py many RESOLVER COUNT            half of the questions for web.mesh, half for others
    names.py both NAME RESOLVER...          A and AAAA at once, of all resolvers, from one socket
    names.py stream RESOLVER NAME           over TCP, reading no more than FIONREAD says is there
"""

import fcntl
import select
import socket
import struct
import sys
import termios


def question(number, name, kind):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">xHH", kind, 1)


def addresses(answer, asked):
    """Data of the records after the question, whose names are all pointers."""
    number, flags, _, count, _, _ = struct.unpack(">6H", answer[:12])
    at, found = len(asked), []
    for _ in range(count):
        while answer[at] and answer[at] < 0xC0:
            at += answer[at] + 1
        at += 2 if answer[at] else 1
        _, _, _, length = struct.unpack(">HHIH", answer[at : at + 10])
        found.append(answer[at + 10 : at + 10 + length])
        at += 10 + length
    return number, flags & 15, found


def shown(data):
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def ask(how, resolver, name, kind=1):
    asked = question(0x1234, name, int(kind))
    family = socket.AF_INET if how == "sendto" or (how == "connected" and ":" not in resolver) else socket.AF_INET6
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    if how == "six":
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    where = "::ffff:" + resolver if how == "mapped" else resolver
    if how == "connected":
        s.connect((where, 53))
        assert s.getpeername()[:2] == (where, 53), s.getpeername()
        s.send(asked)
    else:
        s.sendto(asked, (where, 53))
    answer, source = s.recvfrom(65535)
    assert source[:2] == (where, 53), "the answer is from %s %d" % source[:2]
    number, code, found = addresses(answer, asked)
    assert number == 0x1234
    print(code, *map(shown, found))


def many(resolver, count):
    waiting = {}
    for number in range(int(count)):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        name = "web.mesh" if number % 2 else "n%d.example" % number
        waiting[s] = (number, question(number, name, 1))
    for s, (_, asked) in waiting.items():
        s.sendto(asked, (resolver, 53))
    right = {}
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], 20)
        assert ready, "%d questions without an answer" % len(waiting)
        for s in ready:
            number, asked = waiting.pop(s)
            answer, source = s.recvfrom(65535)
            assert source == (resolver, 53), source
            told, code, found = addresses(answer, asked)
            assert (told, code, len(found)) == (number, 0, 1), (told, code, found)
            right[shown(found[0])] = right.get(shown(found[0]), 0) + 1
    print(*("%s %d" % each for each in sorted(right.items())))


def both(name, *resolvers):
    """As musl does it: answers count only from addresses that were asked."""
    six = any(":" in r for r in resolvers)
    where = [r if ":" in r or not six else "::ffff:" + r for r in resolvers]
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(10)
    if six:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::" if six else "0.0.0.0", 0))
    asked = {0x1100 + kind: question(0x1100 + kind, name, kind) for kind in (1, 28)}
    for one in asked.values():
        for r in where:
            s.sendto(one, (r, 53))
    left, right, sources = dict(asked), [], set()
    while left:
        answer, source = s.recvfrom(65535)
        assert source[1] == 53 and source[0] in where, source
        number, code, found = addresses(answer, asked[struct.unpack(">H", answer[:2])[0]])
        if code == 2:
            continue
        sources.add(source[0])
        if left.pop(number, None):
            right += found
    print(*sorted(map(shown, right)))


def stream(resolver, name):
    asked = question(0x1234, name, 1)
    s = socket.create_connection((resolver, 53), 10)
    s.sendall(struct.pack(">H", len(asked)) + asked)
    got = b""
    while len(got) < 2 or len(got) < 2 + struct.unpack(">H", got[:2])[0]:
        assert select.select([s], [], [], 10)[0], "no answer"
        there = struct.unpack("i", fcntl.ioctl(s, termios.FIONREAD, b"\0" * 4))[0]
        assert there > 0, "readable, but FIONREAD says nothing is there"
        got += s.recv(there)
    number, code, found = addresses(got[2:], asked)
    assert number == 0x1234
    print(code, *map(shown, found))


{"ask": ask, "both": both, "many": many, "stream": stream}[sys.argv[1]](*sys.argv[2:])
