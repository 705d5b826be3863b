#!/usr/bin/env bash
# budget.sh NAME SECONDS COMMAND...: runs the command, says how long it took, and fails if that was over the budget.
# What has to be compiled is compiled before, so the figure is that of a warm run. STEAD_BUDGETS=off only reports.
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

name=$1 budget=$2
shift 2
begin=$SECONDS
status=0
"$@" || status=$?
took=$((SECONDS - begin))
say "$name: $took s of $budget s"
if [ "$status" -ne 0 ]; then
    exit "$status"
fi
if [ "$took" -gt "$budget" ] && [ "${STEAD_BUDGETS:-}" != off ]; then
    die "$name took $took s, its budget is $budget s. Make it quicker, or run with STEAD_BUDGETS=off on a slow machine."
fi
