#!/bin/bash
# What runs in a container of the cluster or, without containers, in its own namespaces:
#     entrypoint.sh controller    a new, empty cluster: munged, MariaDB, slurmdbd, slurmctld
#     entrypoint.sh node NAME     slurmd
#     entrypoint.sh image         make an empty database, once for the image
# MTF_SLURM_STATE   folder shared by all, at the same path everywhere; absolute and short
# MTF_SLURM_PORT    first of four ports of the loopback: slurmctld, slurmdbd, n1, n2
# MTF_SLURM_USERS   who may submit besides root, separated by commas
set -euo pipefail
umask 022
here=$(dirname "$(readlink -f "$0")")
state=${MTF_SLURM_STATE:-/tmp/mtf-slurm}
port=${MTF_SLURM_PORT:-16817}
users=${MTF_SLURM_USERS-}
# Daemons bind to the loopback alone. Clients have another file: what srun would bind to is
# the address of the host's name, where the nodes may not find it.
export SLURM_CONF=$state/daemons/slurm.conf
# The server asks for no password: its socket lies in a folder that only root may enter.
export MYSQL_UNIX_PORT=$state/run/database/socket

# until_ok COMMAND...: wait until it succeeds.
until_ok() {
    local deadline=$((SECONDS + 60))
    until "$@" &>/dev/null; do
        ((SECONDS < deadline)) || { echo "gave up waiting for: $*" >&2; exit 1; }
        sleep 0.05
    done
}

accounting_listens() { : >"/dev/tcp/127.0.0.1/$((port + 1))"; }
munge_works() { munge --no-input --socket="$state/munge/socket"; }

# render TEMPLATE FILE MODE [SED-COMMAND]: it is there when it is whole.
render() {
    sed -e "s|@STATE@|$state|g" -e "s|@CTLD_PORT@|$port|g" -e "s|@DBD_PORT@|$((port + 1))|g" \
        -e "s|@N1_PORT@|$((port + 2))|g" -e "s|@N2_PORT@|$((port + 3))|g" -e "${4-}" \
        "$here/$1" >"$2.new"
    chmod "$3" "$2.new"
    mv "$2.new" "$2"
}

configure() {
    rm -rf "$state"/{controller,daemons,database,log,munge,run,spool,slurm.conf}
    mkdir -p "$state"/{controller,daemons,log,munge,run,spool/n1,spool/n2}
    render slurmdbd.conf.in "$state/daemons/slurmdbd.conf" 600
    echo CgroupAutomount=no >"$state/daemons/cgroup.conf"
    # The GPUs are only counted; Slurm wants a file for each.
    local files=/dev/null,/dev/zero,/dev/full,/dev/random
    printf "NodeName=n%d Name=gpu Type=%s File=$files\n" 1 a100 2 h100 \
        >"$state/daemons/gres.conf"
    render slurm.conf.in "$SLURM_CONF" 644
    render slurm.conf.in "$state/slurm.conf" 644 /^CommunicationParameters=/d
}

start_munged() {
    (umask 377 && head -c 1024 /dev/urandom >"$state/munge/key")
    munged --force --key-file="$state/munge/key" --socket="$state/munge/socket" \
        --pid-file="$state/run/munged.pid" --seed-file="$state/munge/seed" \
        --log-file="$state/log/munged.log"
}

make_database() {
    mariadb-install-db --no-defaults --user=root --datadir="$1" --innodb-log-file-size=8M \
        --skip-test-db >/dev/null
}

start_accounting() {
    if [[ -d $here/database ]]; then
        cp -r "$here/database" "$state/database"
    else
        make_database "$state/database"
    fi
    install -d -m 700 "$state/run/database"
    # A crash of the machine may lose rows: it loses the jobs as well.
    mariadbd --no-defaults --user=root --datadir="$state/database" --skip-networking \
        --skip-grant-tables --socket="$MYSQL_UNIX_PORT" --pid-file="$state/run/mariadbd.pid" \
        --innodb-log-file-size=8M --innodb-buffer-pool-size=64M \
        --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
        &>"$state/log/mariadbd.log" &
    until_ok test -S "$MYSQL_UNIX_PORT"
    slurmdbd -D &>/dev/null &
    until_ok accounting_listens
    # Root is in the account root of itself.
    {
        echo 'add cluster mtf'
        echo 'add qos tiny flags=DenyOnLimit maxsubmitjobsperuser=2'
        echo 'modify cluster mtf set qos=normal,tiny'
        [[ -z $users ]] || echo "add user $users account=root"
    } | sacctmgr --immediate &>"$state/log/sacctmgr.log"
}

controller() {
    configure
    exec &>"$state/log/controller.log"
    start_munged
    start_accounting
    # Not the main process of its role, so that it can be restarted alone.
    slurmctld
    trap 'kill $(jobs -p) 2>/dev/null; exit 0' TERM INT
    wait -n
    echo 'the accounting has ended' >&2
    exit 1
}

node() {
    until_ok test -s "$SLURM_CONF"
    until_ok munge_works
    until_ok scontrol ping
    exec slurmd -D -N "$1"
}

case ${1-} in
controller) controller ;;
node) node "${2:?which node}" ;;
image) make_database "$here/database" ;;
*) echo 'usage: entrypoint.sh controller | node NAME | image' >&2; exit 2 ;;
esac
