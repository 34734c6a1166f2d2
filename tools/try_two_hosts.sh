#!/usr/bin/env bash
# Train across two "machines": network namespaces with a virtual cable between them. Needs root, Linux and iproute2.
#   tools/try_two_hosts.sh [PYTHON]
# 1. one process alone; 2. one process on each machine, found by torchrun's rendezvous: the same losses;
# 3. the cable is cut in the middle of a training: both sides must end within 30 s and say why, and the run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(realpath -s "${1:-.venv/bin/python}")
WORK=$(mktemp -d)
export OMP_NUM_THREADS=1 SELFTAUGHT_CACHE=$WORK/cache PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
A=selftaught-a B=selftaught-b

end_all() { for n in $A $B; do ip netns pids $n 2>/dev/null | xargs -r kill -9 2>/dev/null || true; done; }
cleanup() {
    end_all
    for n in $A $B; do ip netns del $n 2>/dev/null || true; done
    rm -rf "$WORK"
}
trap cleanup EXIT

ip netns add $A
ip netns add $B
ip link add cable-a netns $A type veth peer name cable-b netns $B
ip -n $A addr add 10.77.0.1/24 dev cable-a
ip -n $B addr add 10.77.0.2/24 dev cable-b
for n in $A $B; do ip -n $n link set lo up; done
ip -n $A link set cable-a up
ip -n $B link set cable-b up

"$PY" - "$WORK/data.npz" <<'P'
import sys, numpy as np
np.savez(sys.argv[1], images=np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3)).astype(np.uint8))
P

both() { # ID WORDS...: start a command with one process on each machine
    local id=$1 n host own holds # who holds the store; torchrun cannot guess it from the host's name here
    shift
    for n in a b; do
        if [ $n = a ]; then host=$A own=10.77.0.1 holds=1; else host=$B own=10.77.0.2 holds=0; fi
        ip netns exec $host env GLOO_SOCKET_IFNAME=cable-$n "$PY" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 \
            --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29500 --rdzv-id "$id" --rdzv-conf is_host=$holds --local-addr $own \
            -m selftaught "$@" >"$WORK/$n.txt" 2>&1 &
        if [ $n = a ]; then pid_a=$!; else pid_b=$!; fi
    done
}

fail() {
    echo "failed: $1"
    tail -n 40 "$WORK"/[ab].txt
    exit 1
}

"$PY" -m selftaught train mae "$WORK/data.npz" --out "$WORK/one" --size tiny --steps 20 --quiet
both 1 train mae "$WORK/data.npz" --out "$WORK/two" --size tiny --steps 20
wait $pid_a && wait $pid_b || fail "two machines"
grep -h "processes" "$WORK/a.txt"
"$PY" - "$WORK" <<'P'
import json, sys
one, two = ([json.loads(x) for x in open(f"{sys.argv[1]}/{n}/metrics.jsonl")] for n in ("one", "two"))
apart = [abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(one, two, strict=True)]
print(f"two machines, 20 steps: losses differ from one process by {apart[0]:.1e} at the first and {max(apart):.1e} at the worst step")
assert apart[0] < 1e-5 and max(apart) < 1e-3
P

both 2 train mae "$WORK/data.npz" --out "$WORK/cut" --size tiny --steps 1000000
until ls "$WORK"/cut/checkpoints/step-* >/dev/null 2>&1; do # one a minute
    kill -0 $pid_a && kill -0 $pid_b || fail "the run ended by itself"
    sleep 1
done
echo "cutting the cable"
ip -n $A link set cable-a down
start=$SECONDS a_s='' b_s=''
while [ -z "$a_s" ] || [ -z "$b_s" ]; do
    [ -n "$a_s" ] || grep -q "^selftaught: " "$WORK/a.txt" && a_s=${a_s:-$((SECONDS - start))}
    [ -n "$b_s" ] || grep -q "^selftaught: " "$WORK/b.txt" && b_s=${b_s:-$((SECONDS - start))}
    [ $((SECONDS - start)) -lt 120 ] || fail "no word after 120 s"
    sleep 0.5
done
echo "the processes ended after $a_s s and $b_s s; they say:"
grep -hE "^(selftaught|why|do): " "$WORK"/[ab].txt | sed 's/^/    /'
[ "$a_s" -le 30 ] && [ "$b_s" -le 30 ] || fail "that is longer than 30 s"
end_all # torchrun itself would try for minutes to take leave of the other machine
wait $pid_a $pid_b 2>/dev/null || true

ip -n $A link set cable-a up
saved=$(ls "$WORK/cut/checkpoints" | sort | tail -n 1)
goal=$((10#${saved#step-} + 50))
both 3 resume "$WORK/cut" --steps $goal
wait $pid_a && wait $pid_b || fail "it does not go on"
grep -h "processes" "$WORK/a.txt"
grep -q "done: $goal steps" "$WORK/a.txt" "$WORK/b.txt" && echo "the run went on from $saved to step $goal"
