#!/bin/bash
# Three ZooKeeper servers lose one of them, then each other, and come back. Needs java and Debian's libzookeeper-java.
#     SANLAB=target/release/sanlab examples/zookeeper/run.sh
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
sanlab=$(readlink -f "${SANLAB:-$here/../../target/release/sanlab}")
classes=${ZOOKEEPER_JAR:-/usr/share/java/zookeeper.jar}
nodes=(z1 z2 z3)
state=$(mktemp -d)
declare -A pids=()

finish() {
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
    "$sanlab" down zookeeper >/dev/null 2>&1 || true
    rm -rf "$state"
}
trap finish EXIT

say() { printf '== %s\n' "$*"; }
on() {
    local node=$1
    shift
    "$sanlab" run --cluster zookeeper --node "$node" -- "$@"
}
# What a server says of itself: leader, follower, or nothing while it has no quorum.
mode() {
    on "$1" bash -c 'exec 3<>/dev/tcp/127.0.0.1/2181; printf srvr >&3; cat <&3' 2>/dev/null | sed -n 's/^Mode: //p'
}
serves() { [ -n "$(mode "$1")" ]; }
waits() { [ -z "$(mode "$1")" ]; }
# A command of the client against one server, on that server's own node. It waits for a connection for ten seconds.
client() {
    local node=$1
    shift
    on "$node" java -Xmx64m -XX:+UseSerialGC -Dzookeeper.client.sasl=false -cp "$classes" \
        org.apache.zookeeper.ZooKeeperMain -server 127.0.0.1:2181 -timeout 10000 "$@" 2>>"$state/client.err"
}
# Makes the key, or changes it: a try that nobody answered may have made it.
writes() { client "$1" create "$2" "$3" || client "$1" set "$2" "$3"; }
reads() { client "$1" get "$2" | grep -qx "$3"; }
# Tries until it succeeds; a server that has ended ends the wait.
until_it_works() {
    until "$@" >/dev/null; do
        for node in "${nodes[@]}"; do
            kill -0 "${pids[$node]}" || { cat "$state/$node.log"; exit 1; }
        done
        sleep 0.2
    done
}

"$sanlab" up --detach "$here/cluster.toml" >/dev/null
for number in 1 2 3; do
    node=z$number
    mkdir "$state/$node"
    echo "$number" >"$state/$node/myid"
    cat >"$state/$node.cfg" <<CONFIG
tickTime=500
initLimit=40
syncLimit=8
dataDir=$state/$node
clientPort=2181
admin.enableServer=false
4lw.commands.whitelist=srvr
server.1=z1:2888:3888
server.2=z2:2888:3888
server.3=z3:2888:3888
CONFIG
    "$sanlab" run --cluster zookeeper --node "$node" -- java -Xmx96m -XX:+UseSerialGC -cp "$classes" \
        org.apache.zookeeper.server.quorum.QuorumPeerMain "$state/$node.cfg" >"$state/$node.log" 2>&1 &
    pids[$node]=$!
done
for node in "${nodes[@]}"; do
    until_it_works serves "$node"
done
until_it_works writes z1 /key together
until_it_works reads z3 /key together
say 'three servers agree'

"$sanlab" partition --cluster zookeeper z1 z2 >/dev/null
"$sanlab" partition --cluster zookeeper z1 z3 >/dev/null
until_it_works waits z1
until_it_works serves z2
until_it_works writes z3 /key majority
say 'the server that was cut off stops to serve; the majority writes'

"$sanlab" partition --cluster zookeeper z2 z3 >/dev/null
for node in "${nodes[@]}"; do
    until_it_works waits "$node"
done
say 'without a majority nobody serves'

"$sanlab" heal --cluster zookeeper >/dev/null
for node in "${nodes[@]}"; do
    until_it_works serves "$node"
done
until_it_works reads z1 /key majority
say 'mended, all three serve again, and z1 has what it missed'
"$sanlab" link show --cluster zookeeper
