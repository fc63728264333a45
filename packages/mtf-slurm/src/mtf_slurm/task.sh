#!/bin/bash
# Runs the experiments of one job, or of one task of an array: task.sh <job folder>
#
# The folder holds `settings.sh` (what to run, see mtf_slurm.shell), `tasks` (a line for each
# task, with the names of its experiments), `checkout.py`, `environment.py` and, once it is
# known, `job_id` (the job that this submission became). An experiment runs in its own folder,
# with output in <job id>.out and <job id>.err, and what it runs on in <job id>.environment.json.
# How it ended is left in <job id>.exit: the status, the token of the job folder, and why it was
# ended by others; while it is to come back there is none. For the marks <job id>.requeued, .again
# and .coming see mtf_slurm._again: where the node has no scontrol, .again asks whoever looks next
# from a login node to bring it back.
#
# Exit status: 0 if all succeeded; 75 if one asks to be continued and was not requeued from
# here; else 1.
set -u
job_folder=$1
cd -- "$job_folder" || exit 1
. ./settings.sh || exit 1

base=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
index=${SLURM_ARRAY_TASK_ID:-0}
task=$base${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
restarts=${SLURM_RESTART_COUNT:-0}
token=${job_folder##*.}
child='' signalled='' got_term='' why=''

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
    { wait "$child"; status=$?; } 2>/dev/null # else bash says what was killed
    [ -z "$signalled" ] && break
  done
  child=''
}

leave() { # <file> <text>: whole or not at all
  printf '%s\n' "$2" >"$1.part" && mv -f -- "$1.part" "$1"
}

is_preempted() {
  [[ $(scontrol show job --oneliner "$task" 2>/dev/null) == *PreemptTime=[0-9]* ]]
}

# Warnings come up to a minute early. TERM comes at the time limit, not before.
time_is_up() {
  local early_s=$((signal_s + 60))
  [ -n "$got_term" ] && early_s=60
  # Where nobody tells of preemptions, all but the end of a short job would count as its end.
  command -v scontrol >/dev/null || [ "$early_s" -le $((time_s / 2)) ] ||
    early_s=$((time_s / 2))
  [ "$SECONDS" -ge $((time_s - early_s)) ]
}

# Come back in the same job. What was cancelled must not: TERM comes to this shell at a
# cancellation, at the end of the grace of a preemption, which requeues by itself, and at the
# end of the time limit.
come_back() { # <path of the experiment's files, without their ends>
  if [ "$why" = preempted ] || is_preempted; then
    why=preempted
    [ -z "$got_term" ] || return 1
  elif time_is_up; then
    why=timeout
    [ "$continue_on_timeout" = 1 ] || return 1
  elif [ -n "$got_term" ]; then
    why=cancelled
    return 1
  fi
  [ "$requeue" = 1 ] || return 1
  if [ "$restarts" -ge "$max_requeues" ]; then
    say "has come back $restarts times, which is the limit (max_requeues)"
    return 1
  fi
  if command -v scontrol >/dev/null && scontrol requeue "$task" >&2; then
    say "asked to come back"
    return 0
  fi
  say "cannot ask to come back from this node: if it does not by itself, submit it again, or" \
    "wait for it, where scontrol is"
  leave "$1.again" "$restarts"
  return 1
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
  import_from
}

# The frozen code goes before what is installed, and takes the place of folders of the project
# that are imported from: those in PYTHONPATH, and those that are installed to be edited. Of what
# was not frozen, which git ignores, there is nothing else.
import_from() {
  local entry entries frozen real found=$code/src:$code
  IFS=: read -r -a entries <<<"${PYTHONPATH:-}"
  for entry in "${entries[@]}"; do
    [[ -z $entry || $entry == /* ]] || entry=$submitted_in/$entry
    if [ "${#checkout[@]}" -gt 0 ] && [ -n "$entry" ]; then
      real=$(cd -- "$entry" 2>/dev/null && pwd -P)
      frozen=''
      if [[ $real/ == "$top"/* ]]; then
        frozen=$checkout_folder${real#"$top"}
      elif [[ $entry/ == "$project_root"/* ]]; then
        frozen=$code${entry#"$project_root"}
      fi
      [ -n "$frozen" ] && [ -e "$frozen" ] && entry=$frozen
    fi
    found+=${entry:+:$entry}
  done
  for entry in "${paths[@]}"; do
    found+=:$checkout_folder/$entry
  done
  export PYTHONPATH=$found
}

# What the job runs on, as its own interpreter finds it; no job need end for it.
record() {
  local paths=() position log=.record.$task
  for position in "${!names[@]}"; do
    place_of "$position"
    has_ended "$files" || paths+=("$files.environment.json")
  done
  [ "${#paths[@]}" -eq 0 ] && return
  # Into a file: what it leaves behind would keep a pipe open.
  timeout -k 5 60 "${interpreter[@]}" "$job_folder/environment.py" \
    --into "$experiments_folder/.slurm/environments" "${paths[@]}" >"$log" 2>&1 </dev/null ||
    say "what it runs on is not recorded: $(tail -n 1 -- "$log" 2>/dev/null)"
  rm -f -- "$log"
}

remove_code() { # <status>
  [ "${#checkout[@]}" -gt 0 ] || return 0
  "$checkout_python" -I ./checkout.py remove --folder "$checkout_folder" \
    --when "$cleanup" --status "$1"
}

# Where processes meet is the node of this shell, as the others reach it: srun tells them its
# address. A port below those that systems give to connections, free as far as is seen here.
find_port() {
  MASTER_PORT=$((12000 + SLURM_JOB_ID % 20000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do
    MASTER_PORT=$((MASTER_PORT + 1))
  done
  export MASTER_PORT
}

# Whether an experiment has left how it ended; that it ended with this status.
has_left() { # <path of its files>
  local of
  [ -e "$1.exit" ] && read -r status of _ <"$1.exit" && [ "$of" = "$token" ]
}

# Whether an experiment has ended in an earlier run of this job: it succeeded, or, of several
# in one task, it failed by itself, which is no reason to run it again.
has_ended() { # <path of its files>
  [ "$restarts" -gt 0 ] && [ ! -e "$1.requeued" ] && has_left "$1" || return 1
  [ "$status" = 0 ] || { [ "$status" != 75 ] && [ "${#names[@]}" -gt 1 ]; }
}

# The id of an experiment's job, and the path of its files without their ends.
place_of() { # <place in the task>
  id=$task
  [ "${#names[@]}" -gt 1 ] && id=$task.$1
  files=$experiments_folder/${names[$1]}/$id
}

run_one() { # <experiment> <its job's id>
  local folder=$experiments_folder/$1 id=$2
  rm -f -- "$folder/$id.exit" "$folder/.$id.saved" "$folder/$id.requeued"
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
  rm -f -- "$folder/.$id.saved"
  # Of a step that had to be killed after TERM, srun says 0, too.
  [ "$status" = 0 ] && [ -n "$got_term" ] && [ "$launch_kind" != none ] && status=75
  # Killed by the warning itself: of a time limit, or of a preemption.
  [ "$status" = 138 ] && status=75
  if [ "$status" = 143 ] && [ -z "$got_term" ] && is_preempted; then
    status=75 why=preempted # Slurm tells no more once it requeues the job itself
  fi
}

# Of the shell that submitted this, perhaps itself a process of many.
unset MASTER_ADDR RANK LOCAL_RANK GROUP_RANK WORLD_SIZE LOCAL_WORLD_SIZE TORCHELASTIC_RUN_ID

claim
line=$(sed -n "$((index + 1))p" tasks)
read -r -a names <<<"$line"
if [ "${#names[@]}" -eq 0 ]; then
  say "there is no line $((index + 1)) in $job_folder/tasks"
  exit 1
fi
for position in "${!names[@]}"; do
  place_of "$position"
  rm -f -- "$files.again" "$files.coming" # it is back
done
if [ "$restarts" -gt "$max_requeues" ]; then
  say "has come back $restarts times, more than the limit (max_requeues): it ends"
  for position in "${!names[@]}"; do
    place_of "$position"
    has_left "$files" || leave "$files.exit" "75 $token preempted"
    rm -f -- "$files.requeued"
  done
  exit 1
fi
if ! make_code; then
  say "the code that was submitted cannot be checked out"
  for position in "${!names[@]}"; do
    place_of "$position"
    has_ended "$files" || rm -f -- "$files.exit" # it has failed, as Slurm says
  done
  exit 1
fi
find_port
record

worst=0 unfinished=''
for position in "${!names[@]}"; do
  place_of "$position"
  if ! has_ended "$files"; then
    if [ -n "$got_term" ]; then
      unfinished=$files worst=75
      break
    fi
    run_one "${names[$position]}" "$id"
    if [ "$status" = 75 ] || { [ -n "$got_term" ] && [ "$status" != 0 ]; }; then
      unfinished=$files worst=$status
      break
    fi
    leave "$files.exit" "$status $token"
  fi
  [ "$status" = 0 ] || worst=1
done
remove_code "$worst"
if [ -n "$unfinished" ]; then
  come_back "$unfinished" && exit 75
  # Of several in a task, one that was ended is as Slurm says that the task is.
  if [ -z "$got_term" ] || [ "${#names[@]}" -eq 1 ]; then
    leave "$unfinished.exit" "75 $token $why"
  fi
fi
exit "$worst"
