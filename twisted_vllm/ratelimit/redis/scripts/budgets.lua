-- A budget is a hash: `start` of its period, what was `spent`, the soft budget that was `warned` of, when it was `reset`,
-- and what each process has `reserved:`. Sums are 64 bits wide; a comparison is exact to 16 digits.
local BUDGET_MS = 40 * 86400000
-- For how long after a reset what a process knows from before it is not believed, in microseconds.
local RESET_HOLDS = 10000000
