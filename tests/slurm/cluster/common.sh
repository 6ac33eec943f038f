# Shared by install-slurm, start-slurm and stop-slurm; sourced, not run.
set -euo pipefail

# Everything of one cluster lies below one folder, so that several may run side by side and none touches /etc/slurm.
ROOT=${SLURM_TEST_ROOT:-/run/sis-slurm}
NUMBER=${SLURM_TEST_NUMBER:-0}
ETC=$ROOT/etc
RUN=$ROOT/run
LIB=$ROOT/lib
LOG=$ROOT/log
CLUSTER=sistest$NUMBER
export SLURM_CONF=$ETC/slurm.conf

die() { echo "${0##*/}: $*" >&2; exit 1; }

# locked "$@": run the calling script under one lock, so that parallel starts wait for each other.
# flock -o: the daemons must not inherit the lock.
locked() {
    if [ -z "${SLURM_TEST_LOCKED:-}" ]; then
        mkdir -p "$ROOT"
        SLURM_TEST_LOCKED=1 exec flock -o "$ROOT/lock" "$0" "$@"
    fi
}

# one_cluster_at_a_time COMMAND...: for what all clusters of a machine share.
one_cluster_at_a_time() {
    ( flock 9; "$@" 9<&- ) 9</etc/munge
}

need_root() { [ "$(id -u)" = 0 ] || die "must run as root"; }

# alive_pid PID NAME: PID is a running process (no zombie) called NAME.
alive_pid() {
    [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null
}

# alive PIDFILE NAME: the pid file names such a process.
alive() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    [ -n "$pid" ] && alive_pid "$pid" "$2"
}

# halt PIDFILE NAME [SECONDS]: TERM, wait, KILL, remove the pid file.
halt() {
    local pid n=$(( ${3:-10} * 10 ))
    if alive "$1" "$2"; then
        pid=$(cat "$1")
        kill -TERM "$pid" 2>/dev/null || true
        while [ $n -gt 0 ] && alive_pid "$pid" "$2"; do sleep 0.1; n=$((n - 1)); done
        alive_pid "$pid" "$2" && kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$1"
}

# wait_for SECONDS COMMAND...: poll until COMMAND succeeds.
wait_for() {
    local n=$(( $1 * 10 )); shift
    while ! "$@" >/dev/null 2>&1; do
        n=$((n - 1)); [ $n -gt 0 ] || return 1
        sleep 0.1
    done
}

munge_ok() { munge -n 2>/dev/null | unmunge >/dev/null 2>&1; }

# set_hosts LINE: keep exactly this line of ours in /etc/hosts ('' for none). Written in place,
# because containers bind-mount the file.
set_hosts() {
    local old='' new
    [ -e /etc/hosts ] && old=$(cat /etc/hosts)
    new=$(grep -v '# sis-slurm$' <<<"$old" || true)
    [ -n "$1" ] && new="$new${new:+$'\n'}$1 # sis-slurm"
    [ "$new" = "$old" ] || printf '%s\n' "$new" >/etc/hosts
}

# strays [NODE]: pids of processes our jobs left behind (their step managers first), or of those of one node. Job
# processes are known by the cluster name in their environment, step managers by their open log:
# other clusters have jobs of the same number.
strays() {
    local p up=" $$ " pid=$$ cmd node=${1:-} own=()
    while [ "$pid" -gt 1 ]; do              # never our own ancestors
        pid=$(awk '/^PPid:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || break
        [ -n "$pid" ] || break
        up="$up$pid "
    done
    for p in /proc/[0-9]*; do
        pid=${p#/proc/}
        case "$up" in *" $pid "*) continue ;; esac
        cmd=$(tr -d '\0' 2>/dev/null <"$p/cmdline") || continue
        case "$cmd" in
            'slurmstepd: ['*']')
                grep -q "^$LOG/slurmd\.${node:-[^/]*}\.log" < <(readlink "$p"/fd/* 2>/dev/null) && echo "$pid" ;;
            ?*)
                grep -zqx "SLURM_CLUSTER_NAME=$CLUSTER" "$p/environ" 2>/dev/null || continue
                [ -z "$node" ] || grep -zqx "SLURMD_NODENAME=$node" "$p/environ" 2>/dev/null || continue
                own+=("$pid") ;;
        esac
    done
    [ ${#own[@]} = 0 ] || printf '%s\n' "${own[@]}"
}
