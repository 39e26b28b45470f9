//! The answer to `-h`.

pub(super) const HELP: &str = "\
Virtual services of shunt, with the command line of ipvsadm 1.31.

Services, named by -t, -u, --sctp-service HOST:PORT or by -f MARK (-6 for IPv6):
  -A, --add-service NAME       a new one         -E, --edit-service NAME    changes it
  -D, --delete-service NAME    removes it        -C, --clear                removes all
      -s, --scheduler S        rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos none (wlc)
      -b, --sched-flags F,...  sh-fallback sh-port mh-fallback mh-port flag-1 flag-2 flag-3
      -p, --persistent [SEC]   a client stays with its server (360)
      -M, --netmask MASK       so much of its address is the client (IPv6: bits)
      --pe sip                 or the Call-ID of its calls
      -o, --ops                each packet of UDP alone

Real servers of a service:
  -a, --add-server NAME -r HOST[:PORT]      -e, --edit-server NAME -r HOST[:PORT]
  -d, --delete-server NAME -r HOST[:PORT]
      -g, --gatewaying         by its link address (the default); its port is the service's
      -m, --masquerading       by translation
      -i, --ipip               through a tunnel: --tun-type ipip|gue|gre, --tun-port PORT,
                               --tun-nocsum, --tun-csum, --tun-remcsum
      --full-nat FIRST-LAST    by translation of both addresses (shunt's own)
      -w, --weight N           its share (1); 0: no new connections
      -x, --u-threshold N      no new connections from so many on
      -y, --l-threshold N      until there are fewer than so many

Listings:
  -L, -l, --list [NAME]        services and servers
      -n, --numeric            no names          --nosort, --sort
      --stats, --rate          counters          -X, --exact   not shortened
      --thresholds, --persistent-conn, --tun-info
      -c, --connection         connections instead; --timeout or --daemon: what is set
  -S, --save [-n]              as lines for -R
  -R, --restore                reads lines from standard input and applies all of them, or none
      --replace                they describe the whole table: only the difference is applied
      --keep-going             line by line, as ipvsadm does it
  -Z, --zero [NAME]            counters begin at 0

  --set TCP FIN UDP            timeouts in seconds; 0: as it is
  --start-daemon master|backup, --stop-daemon master|backup
      --mcast-interface IF (eth0), --syncid N, --sync-maxlen N, --mcast-port P, --mcast-ttl N
      --mcast-group ADDRESS    =ADDRESS: the other director alone (shunt's own)
  -h, --help    -v, --version

  --json                       answers of listings as JSON (shunt's own)
  --container NAME             the table of a container instead of the global one (shunt's own)
";
