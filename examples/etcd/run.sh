#!/bin/bash
# Three members of an etcd cluster lose their leader, then everybody, and come back. Needs etcd and etcdctl in PATH.
#     SANLAB=target/release/sanlab examples/etcd/run.sh
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
sanlab=$(readlink -f "${SANLAB:-$here/../../target/release/sanlab}")
nodes=(n1 n2 n3)
state=$(mktemp -d)
declare -A pids=()

finish() {
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait
    "$sanlab" down etcd >/dev/null 2>&1 || true
    rm -rf "$state"
}
trap finish EXIT

say() { printf '== %s\n' "$*"; }
# A command of etcdctl against one member, on that member's own node.
ctl() {
    local node=$1
    shift
    "$sanlab" run --cluster etcd --node "$node" -- \
        env ETCDCTL_API=3 etcdctl --endpoints http://127.0.0.1:2379 --command-timeout 2s "$@" 2>>"$state/etcdctl.err"
}
# Tries until it succeeds; a member that has ended ends the wait.
until_it_works() {
    until "$@" >/dev/null; do
        for node in "${nodes[@]}"; do
            kill -0 "${pids[$node]}" || { cat "$state/$node.log"; exit 1; }
        done
        sleep 0.1
    done
}
# What a member has for a key, as the majority sees it.
reads() { [ "$(ctl "$1" get --print-value-only "$2")" = "$3" ]; }

"$sanlab" up --detach "$here/cluster.toml" >/dev/null
for node in "${nodes[@]}"; do
    "$sanlab" run --cluster etcd --node "$node" -- etcd --name "$node" --data-dir "$state/$node" \
        --listen-peer-urls http://0.0.0.0:2380 --initial-advertise-peer-urls "http://$node:2380" \
        --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls "http://$node:2379" \
        --initial-cluster n1=http://n1:2380,n2=http://n2:2380,n3=http://n3:2380 \
        --heartbeat-interval 200 --election-timeout 2000 >"$state/$node.log" 2>&1 &
    pids[$node]=$!
done
for node in "${nodes[@]}"; do
    until_it_works ctl "$node" endpoint health
done
until_it_works ctl n1 put key together
until_it_works reads n3 key together
say 'three members agree'

leader=
while [ -z "$leader" ]; do
    for node in "${nodes[@]}"; do
        # A member that does not answer is asked again.
        status=$(ctl "$node" endpoint status -w fields) || continue
        member=$(sed -n 's/^"MemberID" : //p' <<<"$status")
        if [ -n "$member" ] && [ "$member" = "$(sed -n 's/^"Leader" : //p' <<<"$status")" ]; then
            leader=$node
        fi
    done
done
others=()
for node in "${nodes[@]}"; do
    [ "$node" = "$leader" ] || others+=("$node")
done

for node in "${others[@]}"; do
    "$sanlab" partition --cluster etcd "$leader" "$node" >/dev/null
done
until_it_works ctl "${others[0]}" put key majority
until_it_works reads "${others[1]}" key majority
say 'the majority elects another leader and writes'
if ctl "$leader" put key minority >/dev/null; then
    say 'the leader that was cut off wrote: a split brain'
    exit 1
fi
say 'the leader that was cut off refuses to write'

"$sanlab" partition --cluster etcd "${others[@]}" >/dev/null
for node in "${nodes[@]}"; do
    # A key of its own: what a leader could not spread it may still spread later, and nobody was promised anything.
    if ctl "$node" put lost nobody >/dev/null; then
        say "$node wrote without a majority"
        exit 1
    fi
done
say 'without a majority nobody writes'

"$sanlab" heal --cluster etcd >/dev/null
for node in "${nodes[@]}"; do
    until_it_works ctl "$node" put "$node" back
done
until_it_works reads "$leader" "${others[0]}" back
until_it_works reads "$leader" key majority
say 'mended, all three write again, and the old leader has what it missed'
"$sanlab" link show --cluster etcd
