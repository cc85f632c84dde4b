-- Take all of an ask, or nothing of it. Time is this server's, in microseconds.
-- KEYS: the rates' windows (hashes of sixtieth -> amount), then the slots (sorted sets of lease -> expiry).
-- ARGV: lease, its milliseconds, microseconds of a sixtieth, number of rates; limit and amount of each rate;
-- limit of each slots.
-- Gives: granted, number of what refused, microseconds to wait, the sixtieth of now; used and microseconds
-- until empty of each rate.
local PARTS = 60
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lease, lease_ms, part, rates = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local place = math.floor(now / part)
local function leaves(at) return (at + PARTS + 1) * part end

local windows, refused, wait = {}, 0, 0
for i = 1, rates do
  local limit, amount = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
  local fields = redis.call('HGETALL', KEYS[i])
  local used, last, live, gone = 0, nil, {}, {}
  for j = 1, #fields, 2 do
    local at = tonumber(fields[j])
    if at < place - PARTS then
      gone[#gone + 1] = fields[j]
    else
      local there = tonumber(fields[j + 1])
      used = used + there
      live[#live + 1] = {at, there}
      if not last or at > last then last = at end
    end
  end
  if #gone > 0 then redis.call('HDEL', KEYS[i], unpack(gone)) end
  local excess = used + amount - limit
  if excess > 0 then
    table.sort(live, function(a, b) return a[1] < b[1] end)
    for _, one in ipairs(live) do
      excess = excess - one[2]
      if excess <= 0 then
        if leaves(one[1]) - now > wait then refused, wait = i, leaves(one[1]) - now end
        break
      end
    end
  end
  windows[i] = {used = used, last = last, amount = amount}
end

if refused == 0 then
  for i = rates + 1, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now / 1000)
    if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[4 + rates + i]) then
      refused = i
      break
    end
  end
end

if refused == 0 then
  local kept = string.format('%.0f', leaves(1) / 1000)
  for i = 1, rates do
    redis.call('HINCRBY', KEYS[i], string.format('%.0f', place), windows[i].amount)
    redis.call('PEXPIRE', KEYS[i], kept)
    windows[i].used, windows[i].last = windows[i].used + windows[i].amount, place
  end
  for i = rates + 1, #KEYS do
    redis.call('ZADD', KEYS[i], now / 1000 + lease_ms, lease)
    redis.call('PEXPIRE', KEYS[i], 2 * lease_ms)
  end
end

local answer = {refused == 0 and 1 or 0, refused, wait, place}
for i = 1, rates do
  answer[#answer + 1] = windows[i].used
  answer[#answer + 1] = windows[i].last and math.max(0, leaves(windows[i].last) - now) or 0
end
return answer
