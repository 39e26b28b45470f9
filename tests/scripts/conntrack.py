"""Reads what `conntrack -L` of conntrack(8) prints, line by line from standard input, into one JSON array.

Written for conntrack-tools 1.4.7; a line that does not follow its format ends the script with status 1:
  PROTOCOL NUMBER TIMEOUT [STATE] ORIGINAL-TUPLE [[UNREPLIED]] REPLY-TUPLE [[ASSURED]] mark=N use=N
A tuple is src= dst= and then, by protocol, sport= dport= or type= code= id=; counters (packets= bytes=) may follow it.
"""

import json
import re
import sys

TUPLE = (
    r"src=(?P<{0}src>\S+) dst=(?P<{0}dst>\S+) "
    r"(?:sport=(?P<{0}sport>\d+) dport=(?P<{0}dport>\d+) "
    r"|type=(?P<{0}type>\d+) code=(?P<{0}code>\d+) id=(?P<{0}id>\d+) )?"
    r"(?:packets=(?P<{0}packets>\d+) bytes=(?P<{0}bytes>\d+) )?"
)
LINE = re.compile(
    r"^(?P<protocol>[a-z0-9-]+) +(?P<number>\d+) (?P<timeout>\d+) (?:(?P<state>[A-Z][A-Z_0-9]+) )?"
    + TUPLE.format("")
    + r"(?P<unreplied>\[UNREPLIED\] )?"
    + TUPLE.format("reply_")
    + r"(?P<assured>\[ASSURED\] )?mark=(?P<mark>\d+) (?:zone=\d+ )?use=(?P<use>\d+)$"
)
NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "dccp": 33, "udplite": 136, "gre": 47}
STATES = {
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE",
    "SYN_SENT2",
}  # fmt: skip

entries = []
for line in sys.stdin:
    line = line.rstrip("\n").rstrip()
    if not line:
        continue
    match = LINE.match(line)
    entry = match and {name: value for name, value in match.groupdict().items() if value is not None}
    if entry is None:
        sys.exit(f"not conntrack's format: {line!r}")
    if entry["protocol"] in NUMBERS and int(entry["number"]) != NUMBERS[entry["protocol"]]:
        sys.exit(f"protocol and number differ: {line!r}")
    if entry["protocol"] == "tcp" and entry.get("state") not in STATES:
        sys.exit(f"no TCP state: {line!r}")
    if entry["protocol"] in ("udp", "icmp", "icmpv6") and "state" in entry:
        sys.exit(f"{entry['protocol']} has no state: {line!r}")
    entries.append(entry)
json.dump(entries, sys.stdout)
