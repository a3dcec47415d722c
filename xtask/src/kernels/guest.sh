#!/bin/busybox sh
# The first program of a machine that `cargo xtask kernels` starts. It says on its second serial port what
# happens, each part between `@@ begin NAME` and `@@ end NAME CODE`, and turns the machine off.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/root RUST_BACKTRACE=0
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /sys/fs/cgroup
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
# A test wants a device that is not loopback.
ip link add dummy0 type dummy && ip link set dummy0 up
mkdir /sys/fs/cgroup/callers
ulimit -n 20000
exec </dev/null >/dev/ttyS1 2>&1

# Runs a command for at most that many seconds. Through a file: what writes to a terminal colors its words.
part() {
    name=$1 limit=$2
    shift 2
    echo "@@ begin $name"
    timeout "$limit" "$@" >/tmp/said 2>&1
    code=$?
    cat /tmp/said
    echo
    echo "@@ end $name $code"
}

# Starts the agent with `capture: auto`, waits until it is ready, and stops it.
agent() {
    sockmesh run --config /etc/sockmesh.yaml &
    agent=$!
    left=100
    while [ $left -gt 0 ] && kill -0 $agent && ! wget -qO /dev/null http://127.0.0.1:8002/ready 2>/dev/null; do
        left=$((left - 1))
        usleep 100000
    done
    wget -qO- http://127.0.0.1:8002/metrics | grep -E '^sockmesh_.*redirect'
    kill -TERM $agent
    wait $agent
}

echo "@@ release $(uname -r)"
sed 's/mode: auto/mode: ebpf/' /etc/sockmesh.yaml >/tmp/ebpf.yaml
part check 60 sockmesh check --config /tmp/ebpf.yaml
checked=$code
part redirect 120 sockmesh check --redirect
echo "@@ begin agent"
agent >/tmp/said 2>&1
code=$?
cat /tmp/said
echo "@@ end agent $code"
if [ $checked = 0 ]; then
    part tests @LIMIT@ kernel-tests --show-output --test-threads=2 @FILTER@
fi
echo "@@ begin kernel"
dmesg | grep -E 'BUG:|WARNING:|Oops|general protection|Call Trace|refcount_t|use-after-free'
echo "@@ end kernel 0"
echo "@@ done"
sync
poweroff -f
