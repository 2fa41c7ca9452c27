# shellcheck shell=sh
# The helpers as shell functions, for scripts that begin with `. cronium.sh`: PATH finds it inside a job.
#
# Each is a word or two over a helper command, so grammar, messages and exit statuses are the commands' own. The
# commands have the same names and need no sourcing (cronium_input, cronium_set_variable, …); what is here only are
# cronium_event_field, cronium_variable_exists, cronium_info and the separator of cronium_append_variable. Plain POSIX:
# sh, dash, busybox, bash and zsh. This file stands alone: scripts may copy it.

cronium_input() { cronium.input "$@"; }
cronium_output() { cronium.output "$@"; }
cronium_get_variable() { cronium.getVariable "$@"; }
cronium_set_variable() { cronium.setVariable "$@"; }
cronium_delete_variable() { cronium.deleteVariable "$@"; }
cronium_increment_variable() { cronium.incrementVariable "$@"; }
cronium_event() { cronium.event "$@"; }
cronium_event_field() { cronium.event -- "$1"; }
cronium_set_condition() { cronium.setCondition "$@"; }
cronium_get_condition() { cronium.getCondition "$@"; }
cronium_progress() { cronium.progress "$@"; }
cronium_summary() { cronium.summary "$@"; }
cronium_execute_tool_action() { cronium.executeToolAction "$@"; }

cronium_variable_exists() { cronium.getVariable -- "$1" >/dev/null 2>&1; }

# NAME TEXT [SEPARATOR]: the separator stands in front of the text where there is some text already.
cronium_append_variable() {
  if [ $# -lt 3 ] || [ -z "$(cronium.getVariable --default '' -- "$1")" ]; then
    cronium.appendVariable -- "$1" "$2"
  else
    cronium.appendVariable -- "$1" "$3$2"
  fi
}

cronium_info() {
  printf 'execution %s, job %s, mode %s\n' "$CRONIUM_EXECUTION_ID" "$CRONIUM_JOB_ID" "$CRONIUM_HELPER_MODE"
}
