#!/bin/sh
# Called by udhcpc and by dhclient (-sf) for what they have agreed on: sets the address and the default route, and adds
# their words to the file $LEASE_LOG, one line an event.
case ${reason:-} in
  '') # udhcpc: the event is its argument
    event=$1 address=$ip mask=$mask routers=$router servers=$dns routes=$staticroutes seconds=$lease ;;
  *)
    event=$reason address=$new_ip_address mask=$new_subnet_mask routers=$new_routers servers=$new_domain_name_servers
    mtu=$new_interface_mtu routes=$new_rfc3442_classless_static_routes seconds=$new_dhcp_lease_time
    hostname=$new_host_name serverid=$new_dhcp_server_identifier domain=$new_domain_name ;;
esac
echo "$event address=$address mask=$mask routers=$routers dns=$servers mtu=$mtu routes=$routes seconds=$seconds" \
  "hostname=$hostname server=$serverid domain=$domain;" >>"$LEASE_LOG"
case $event in
  bound | renew | BOUND | RENEW | REBIND | REBOOT)
    ip address replace "$address/$mask" dev eth0
    for gateway in $routers; do
      ip route replace default via "$gateway" dev eth0
      break
    done
    ;;
  deconfig | PREINIT | EXPIRE | RELEASE | STOP)
    ip link set eth0 up
    ip -4 address flush dev eth0
    ;;
esac
exit 0
