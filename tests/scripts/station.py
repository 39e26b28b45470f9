"""A station that says exactly what it is told to: scapy on the device eth0 of a namespace, driven by lines.

Standard input has one JSON object a line, standard output one JSON answer to each:
  {"be": ["10.0.0.2", "fd00::2"]}      answer ARP and neighbour solicitations for these addresses
  {"let": "STATEMENTS"}                give names to what expressions are made of
  {"send": "EXPRESSION", "clear": true} evaluate to one packet or bytes, or a list, and send as they are; what was
                                       received before is forgotten first
  {"find": "CONDITION", "limit": 2.0}  the first received packet p for which the Python condition holds; null if none
                                       comes in the time; then taken off the list
  {"count": "CONDITION"}               how many received packets there are for which it holds
The namespace's own stack must be silent (no addresses), or it would answer, too.
"""

import json
import logging
import socket
import sys
import threading
import time
import traceback

logging.getLogger("scapy").setLevel(logging.CRITICAL)

from scapy.all import *  # noqa: E402,F401,F403  every layer by its name, for the expressions

DEVICE = "eth0"
ETH_P_ALL = 3
PACKET_OUTGOING = 4
MAC = open(f"/sys/class/net/{DEVICE}/address").read().strip()

own = set()
received = []
changed = threading.Condition()

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
wire.bind((DEVICE, ETH_P_ALL))


def answer_for(p):
    """The reply to a question for one of the own addresses."""
    if ARP in p and p[ARP].op == 1 and p[ARP].pdst in own:
        ask = p[ARP]
        return Ether(src=MAC, dst=ask.hwsrc) / ARP(
            op=2, hwsrc=MAC, psrc=ask.pdst, hwdst=ask.hwsrc, pdst=ask.psrc
        )
    if ICMPv6ND_NS in p and p[ICMPv6ND_NS].tgt in own:
        target = p[ICMPv6ND_NS].tgt
        return (
            Ether(src=MAC, dst=p[Ether].src)
            / IPv6(src=target, dst=p[IPv6].src, hlim=255)
            / ICMPv6ND_NA(tgt=target, R=0, S=1, O=1)
            / ICMPv6NDOptDstLLAddr(lladdr=MAC)
        )
    return None


def listen():
    while True:
        frame, address = wire.recvfrom(65536)
        if address[2] == PACKET_OUTGOING:
            continue
        try:
            p = Ether(frame)
            reply = answer_for(p)
            if reply is not None:
                wire.send(bytes(reply))
        except Exception:
            p = Raw(frame)
        with changed:
            received.append(p)
            changed.notify_all()


def holds(condition, p):
    try:
        return bool(eval(condition, globals(), {"p": p}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False  # of another kind than the condition speaks of


def find(condition, limit):
    end = time.monotonic() + limit
    seen = 0
    with changed:
        while True:
            for index in range(seen, len(received)):
                if holds(condition, received[index]):
                    return received.pop(index)
            seen = len(received)
            left = end - time.monotonic()
            if left <= 0:
                return None
            changed.wait(left)


def serve(request):
    if "be" in request:
        own.update(request["be"])
        return {"mac": MAC}
    if "let" in request:
        exec(request["let"], globals())
        return {}
    if "send" in request:
        packets = eval(request["send"], globals())
        if request.get("clear"):
            with changed:
                received.clear()
        for packet in packets if isinstance(packets, list) else [packets]:
            wire.send(packet if isinstance(packet, bytes) else bytes(packet))
        return {"sent": True}
    if "find" in request:
        p = find(request["find"], request["limit"])
        if p is None:
            with changed:
                others = [q.summary() for q in received[-20:]]
            return {"found": None, "others": others}
        return {"found": p.summary(), "bytes": bytes(p).hex()}
    if "count" in request:
        with changed:
            return {"count": sum(holds(request["count"], p) for p in received)}
    raise ValueError(f"what is {request}?")


def good(p, *layers):
    """Whether the checksums of the named layers are those that scapy computes."""
    fresh = p.copy()
    for layer in layers:
        delattr(fresh[layer], checksum_of(fresh[layer]))
    fresh = p.__class__(bytes(fresh))
    return all(
        getattr(fresh[layer], checksum_of(fresh[layer])) == getattr(p[layer], checksum_of(p[layer])) for layer in layers
    )


def checksum_of(layer):
    return next(f.name for f in layer.fields_desc if f.name in ("chksum", "cksum"))


def main():
    threading.Thread(target=listen, daemon=True).start()
    print(json.dumps({"ready": MAC}), flush=True)
    for line in sys.stdin:
        try:
            answer = serve(json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


main()
