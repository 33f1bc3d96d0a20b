-- A budget is a hash: the `start` of its period, what was `spent`, the soft budget it `warned` of, when it was `reset`,
-- and `reserved:` with each process's name. Sums have 64 bits; comparisons are exact to 16 digits.
local BUDGET_MS = 40 * 86400000
-- For so many microseconds after a reset, a higher spending that a process reports is taken for an older one.
local RESET_HOLDS = 10000000
