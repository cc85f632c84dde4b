-- Give slots back, and what of each rate was not used.
-- KEYS: as for admit.lua. ARGV: lease, the sixtieth of the charge, number of rates, what each gets back.
-- A lease that is not there was settled before, or has expired: then nothing is given back twice.
local rates = tonumber(ARGV[3])
if #KEYS > rates then
  local held = 0
  for i = rates + 1, #KEYS do held = held + redis.call('ZREM', KEYS[i], ARGV[1]) end
  if held == 0 then return 0 end
end
for i = 1, rates do
  local back = tonumber(ARGV[3 + i])
  if back ~= 0 and redis.call('HEXISTS', KEYS[i], ARGV[2]) == 1 then
    redis.call('HINCRBY', KEYS[i], ARGV[2], -back)
  end
end
return 1
