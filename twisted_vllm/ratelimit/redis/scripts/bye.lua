-- ARGV: process. What it holds counts no more.
redis.call('DEL', lease(ARGV[1]), admissions(ARGV[1]))
return {ok = 'done'}
