#!/bin/bash
# Runs the experiments of one job, or of one task of an array: task.sh <job folder>
#
# The folder holds `settings.sh` (what to run, see mtf_slurm.arrays), `tasks` (a line for
# each task, with the names of its experiments), `checkout.py` and, once it is known, `job_id`
# (the job that this submission became). An experiment runs in its own folder, with output in
# <job id>.out and <job id>.err; its exit status is left in <job id>.exit.
#
# Exit status: 0 if all succeeded; 75 if one asks to be continued and the job could not be
# requeued from here, which is left to `requeue` or to another submission; else 1.
set -u
job_folder=$1
cd -- "$job_folder" || exit 1
. ./settings.sh || exit 1

base=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
index=${SLURM_ARRAY_TASK_ID:-0}
task=$base${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
restarts=${SLURM_RESTART_COUNT:-0}
child='' signalled='' got_term=''

say() { printf 'mtf-slurm: job %s: %s\n' "$task" "$*" >&2; }

# One job for each submission: the first that starts, or that the submitter wrote down. A
# link is made whole or not at all.
claim() {
  if [ ! -s job_id ]; then
    local mine=".job_id.$task.$$"
    printf '%s\n' "$base" >"$mine" || exit 1
    ln -- "$mine" job_id 2>/dev/null
    rm -f -- "$mine"
  fi
  local owner
  owner=$(<job_id) || exit 1
  if [ "$owner" != "$base" ]; then
    say "was submitted twice; job $owner runs, and this one ends"
    exit 0
  fi
}

on_signal() {
  signalled=1
  [ "$1" = TERM ] && got_term=1
  # Steps get their signals from Slurm, a process of this shell from here.
  if [ -n "$child" ] && [ "$launch_kind" = none ]; then
    kill -s "$1" "$child" 2>/dev/null
  fi
}
trap 'on_signal TERM' TERM
trap 'on_signal USR1' USR1

# A signal interrupts `wait`, which must be asked again.
await() {
  while :; do
    signalled=''
    wait "$child"
    status=$?
    [ -z "$signalled" ] && break
  done
  child=''
}

leave() { # <file> <text>: whole or not at all
  printf '%s\n' "$2" >"$1.part" && mv -f -- "$1.part" "$1"
}

# Signals of the time limit come up to a minute early.
time_is_up() { [ "$SECONDS" -ge $((time_s - signal_s - 60)) ]; }

# Come back in the same job. What was cancelled must not: TERM comes to this shell at a
# cancellation, at the end of the grace of a preemption, which requeues by itself, and at the
# end of the time limit.
come_back() {
  if time_is_up; then
    [ "$continue_on_timeout" = 1 ] || return 1
  elif [ -n "$got_term" ]; then
    return 1
  fi
  [ "$requeue" = 1 ] || return 1
  if [ "$restarts" -ge "$max_requeues" ]; then
    say "has come back $restarts times, which is the limit (max_requeues)"
    return 1
  fi
  if ! command -v scontrol >/dev/null; then
    say "there is no scontrol on this node: requeue it from a login node"
    return 1
  fi
  scontrol requeue "$task" >&2 || return 1
  say "asked to come back"
}

make_code() {
  code=$project_root
  if [ "${#checkout[@]}" -gt 0 ]; then
    checkout_folder=$job_folder/code/$task
    "$checkout_python" -I ./checkout.py make "${checkout[@]}" --replace \
      --folder "$checkout_folder" || return 1
    code=$checkout_folder${prefix:+/$prefix}
  fi
  export MTF_CODE_DIR=$code
  export PYTHONPATH=$code/src:$code${PYTHONPATH:+:$PYTHONPATH}
}

remove_code() { # <status>
  [ "${#checkout[@]}" -gt 0 ] || return 0
  "$checkout_python" -I ./checkout.py remove --folder "$checkout_folder" \
    --when "$cleanup" --status "$1"
}

run_one() { # <experiment> <its job's id>
  local folder=$experiments_folder/$1 id=$2
  if [ -e "$folder/$id.exit" ] && [ "$(<"$folder/$id.exit")" = 0 ]; then
    status=0 # it succeeded before this job came back
    return
  fi
  rm -f -- "$folder/$id.exit"
  export MTF_EXPERIMENT_DIR=$folder MTF_JOB_ID=$id
  set_command "$folder/config.yaml"
  (
    cd -- "$folder" || exit 1
    trap - TERM USR1
    if [ "$redirect" = 1 ]; then
      exec >>"$id.out" 2>>"$id.err"
    fi
    exec "${launch[@]}" "${command[@]}"
  ) &
  child=$!
  await
  # Killed by the warning itself, which a program may get once more while it ends.
  [ "$status" = 138 ] && status=75
  leave "$folder/$id.exit" "$status"
}

claim
if [ "$restarts" -gt "$max_requeues" ]; then
  say "has come back $restarts times, more than the limit (max_requeues): it ends"
  exit 1
fi
line=$(sed -n "$((index + 1))p" tasks)
read -r -a names <<<"$line"
if [ "${#names[@]}" -eq 0 ]; then
  say "there is no line $((index + 1)) in $job_folder/tasks"
  exit 1
fi
if ! make_code; then
  say "the code that was submitted cannot be checked out"
  exit 1
fi

# Where the processes of several nodes meet: the step's own start address, set by srun.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

worst=0
for position in "${!names[@]}"; do
  id=$task
  [ "${#names[@]}" -gt 1 ] && id=$task.$position
  run_one "${names[$position]}" "$id"
  if [ "$status" = 75 ] || [ -n "$got_term" ]; then
    [ "$status" = 0 ] || worst=$status
    break
  fi
  [ "$status" = 0 ] || worst=1
done
remove_code "$worst"
if [ "$worst" = 75 ] || { [ -n "$got_term" ] && [ "$worst" != 0 ]; }; then
  come_back && exit 75
fi
exit "$worst"
