-- Drop what a process holds. ARGV: process.
redis.call('DEL', lease(ARGV[1]), admissions(ARGV[1]))
return {ok = 'done'}
