#!/bin/sh
# An OCF resource agent whose resource is one QEMU: the least that a cluster manager needs to run it.
# /etc/guest/line starts it, by `exec`; /run/guest is its run folder.
pid_file=/run/guest/pid
runs() {
    [ -s "$pid_file" ] && read -r pid <"$pid_file" && kill -0 "$pid" 2>/dev/null
}
case $1 in
start)
    runs && exit 0
    mkdir -p /run/guest
    rm -f /run/guest/*
    setsid sh /etc/guest/line </dev/null >/run/guest/said 2>&1 &
    # The manager's time limit ends this.
    until runs; do
        # Ended before it wrote the file.
        kill -0 $! 2>/dev/null || exit 1
        sleep 0.02
    done
    exit 0
    ;;
stop)
    runs || exit 0
    kill "$pid"
    while runs; do sleep 0.02; done
    exit 0
    ;;
monitor)
    # 7: it does not run, and should know of no error.
    runs && exit 0
    exit 7
    ;;
validate-all) exit 0 ;;
meta-data)
    cat <<'END'
<?xml version="1.0"?>
<resource-agent name="qemu" version="1.0">
  <version>1.0</version>
  <longdesc lang="en">One QEMU.</longdesc>
  <shortdesc lang="en">One QEMU</shortdesc>
  <parameters/>
  <actions>
    <action name="start" timeout="20s"/>
    <action name="stop" timeout="20s"/>
    <action name="monitor" timeout="20s" interval="10s" depth="0"/>
    <action name="meta-data" timeout="5s"/>
    <action name="validate-all" timeout="20s"/>
  </actions>
</resource-agent>
END
    exit 0
    ;;
*) exit 3 ;;
esac
