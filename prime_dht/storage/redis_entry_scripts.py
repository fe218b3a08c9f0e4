"""The Lua scripts for entries; what all scripts have in common is in :mod:`prime_dht.storage.redis_scripts`.

``PUT_ENTRIES`` decides what :func:`prime_dht.storage.joining.join_entry` decides, in the same steps. They are written
twice because the decision has to be taken where nobody interferes, and here that is inside the server. A law keeps the
two together: whatever is done to a store in memory and one in Redis, they say and hold the same.
"""

from __future__ import annotations

from prime_dht.storage.redis_record_scripts import FORGET_RECORDS
from prime_dht.storage.redis_scripts import FURTHER_AWAY, KEEP, free_script, read_script, write_script

# A place ends with created (8 bytes), op id (32), expires (8) and whether it is a tombstone (1). A row begins with
# arrival (8), retain_until (8), location (4), whether it is an op (1) and the length of the place (4).
_ENTRIES = r"""
local PLACE_AT = 26

local function slot_of(place) return place:sub(1, -50) end
local function version_of(place) return place:sub(-49, -10) end
local function op_of(place) return place:sub(-41, -10) end
local function expires_of(place) return place:sub(-9, -2) end

-- A row's place, and where that stops: all behind is the envelope.
local function place_in(row)
  local stop = PLACE_AT - 1 + struct.unpack('>I4', row, PLACE_AT - 4)
  return row:sub(PLACE_AT, stop), stop
end
"""

_CHANGES = r"""
local totals, shares = {}, {}
for i, number in ipairs(call('HMGET', ROWS, '#keys', '#entries', '#bytes', '#arrivals')) do
  totals[({'keys', 'entries', 'bytes', 'arrivals'})[i]] = tonumber(number or 0)
end

-- What the publisher of the entry at a place has in the store.
local function share_of(place)
  local _, key_stop = place:find('\0\1', 1, true)
  local _, stop = place:find('\0\1', key_stop + 1, true)
  local publisher = place:sub(key_stop + 1, stop)
  if not shares[publisher] then
    local entries, bytes = struct.unpack('>dd', call('HGET', ROWS, 'u' .. publisher) or struct.pack('>dd', 0, 0))
    shares[publisher] = {entries = entries, bytes = bytes}
  end
  return shares[publisher]
end

local function count(place, entries, bytes)
  local share = share_of(place)
  share.entries, share.bytes = share.entries + entries, share.bytes + bytes
  totals.entries, totals.bytes = totals.entries + entries, totals.bytes + bytes
end

local function write_counts()
  call('HSET', ROWS, '#keys', totals.keys, '#entries', totals.entries, '#bytes', totals.bytes,
    '#arrivals', totals.arrivals)
  for publisher, share in pairs(shares) do
    if share.entries == 0 then
      call('HDEL', ROWS, 'u' .. publisher)
    else
      call('HSET', ROWS, 'u' .. publisher, struct.pack('>dd', share.entries, share.bytes))
    end
  end
end

local function size_of(op, row)
  local _, stop = place_in(row)
  return #row - stop + call('HSTRLEN', ROWS, 'v' .. op)
end

-- The members of the order that stand for an entry, whether it has a value or not.
local function members_of(op, row)
  local place = place_in(row)
  local arrival, retain, location = row:sub(1, 8), row:sub(9, 16), row:sub(17, 20)
  local members = {place, 'R' .. retain .. op, 'l' .. location .. arrival .. op}
  if row:byte(21) == 1 then
    local sector = struct.pack('>I2', math.floor(struct.unpack('>I4', location) / 2 ^ 23))
    members[4] = 't' .. sector .. version_of(place) .. location
    members[5] = 'i' .. op
  end
  return members
end

-- Remove an entry, and return what is said of it: op id, location, created, and whether it was an op; '' if there is
-- none.
local function forget(op)
  local row = call('HGET', ROWS, 'e' .. op)
  if not row then return '' end
  local place = place_in(row)
  count(place, -1, -size_of(op, row))
  call('HDEL', ROWS, 'e' .. op, 'v' .. op)
  call('ZREM', ORDER, 'V' .. expires_of(place) .. op, unpack(members_of(op, row)))
  if not first(first_part(place)) then totals.keys = totals.keys - 1 end
  return op .. row:sub(17, 20) .. version_of(place):sub(1, 8) .. row:sub(21, 21)
end

-- Drop the value that a member of kind V stands for.
local function drop_value(member)
  local op = member:sub(10)
  count(place_in(call('HGET', ROWS, 'e' .. op)), 0, -call('HSTRLEN', ROWS, 'v' .. op))
  call('HDEL', ROWS, 'v' .. op)
  call('ZREM', ORDER, member)
end
"""

_ROOM = r"""
local now, past = ARGV[5], ARGV[6]  -- what is past is before the second
local max_slots, max_entries, max_bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local max_share_entries, max_share_bytes = tonumber(ARGV[11]), tonumber(ARGV[12])
local near, spared_start, spared_stop = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])

-- What the store holds but for what stands in a slot.
local function others(slot)
  local standing = first(slot)
  if not standing then return totals.entries, totals.bytes end
  local op = op_of(standing)
  return totals.entries - 1, totals.bytes - size_of(op, call('HGET', ROWS, 'e' .. op))
end

-- Evict what has to go for an entry of `size` bytes at `here`, and note it in `evicted`. If there cannot be room,
-- return what the store holds then, besides what stands in the slot.
local function make_room(slot, here, size, evicted)
  local entries, bytes = others(slot)
  local function has_room() return entries < max_entries and bytes + size <= max_bytes end
  while not has_room() do
    local member = call('ZRANGEBYLEX', ORDER, '[R', '(R' .. now, 'LIMIT', 0, 1)[1]
    if not member then break end
    evicted[#evicted + 1] = forget(member:sub(10))
    entries, bytes = others(slot)
  end
  while bytes + size > max_bytes do
    local member = call('ZRANGEBYLEX', ORDER, '[V', '(V' .. past, 'LIMIT', 0, 1)[1]
    if not member then break end
    drop_value(member)
    entries, bytes = others(slot)
  end
  if has_room() then return nil end
  local victims = {}
  each_further_away('l', here, near, spared_start, spared_stop, function(member)
    if has_room() then return true end
    local op = member:sub(14)
    victims[#victims + 1] = op
    entries, bytes = entries - 1, bytes - size_of(op, call('HGET', ROWS, 'e' .. op))
  end)
  if not has_room() then return entries, bytes end
  for _, op in ipairs(victims) do evicted[#evicted + 1] = forget(op) end
  return nil
end
"""

# ARGV from 4: ms to keep the store; now; a microsecond later; the latest time of retirement that counts; the limits of
# slots in a key, of entries and bytes in the store, and of those of a publisher; the node's own location; where those
# that are spared start and stop; then for each entry its place, its row, '1' if it has a value or '0', its value.
# Says for each a letter: I inserted, X inserted and displaced, D duplicate, S superseded, R retired, F full. Behind X
# comes what was displaced, and behind F as doubles what left no room: the slots of the key, the entries and bytes of
# the store, and those of the publisher. Then the number of entries evicted, and these.
PUT_ENTRIES = write_script(
    _ENTRIES,
    _CHANGES,
    FURTHER_AWAY,
    _ROOM,
    KEEP,
    r"""
local GROUP = 's/prime/group/'

local function refused(slots, entries, bytes, share_entries, share_bytes)
  return 'F' .. struct.pack('>ddddd', slots, entries, bytes, share_entries, share_bytes)
end

-- Put one entry, and return what is said of it.
local function join(place, row, value, evicted)
  local op, slot = op_of(place), slot_of(place)
  local standing = first(slot)
  local standing_op, standing_size = standing and op_of(standing), 0
  if standing then
    if less(version_of(place), version_of(standing)) then return 'S' end
    if standing_op == op and (not value or call('HEXISTS', ROWS, 'v' .. op) == 1) then return 'D' end
    standing_size = size_of(standing_op, call('HGET', ROWS, 'e' .. standing_op))
  end

  local _, stop = place_in(row)
  local size = #row - stop + (value and #value or 0)
  local key = first_part(place)
  local min, max = range(key)
  local slots, share = call('ZLEXCOUNT', ORDER, min, max), share_of(place)
  local share_entries, share_bytes = share.entries - (standing and 1 or 0), share.bytes - standing_size
  local new_slots = standing and 0 or slots
  if not standing and place:sub(1, #GROUP) == GROUP then  -- where each publisher has a share of its own
    local _, behind_publisher = place:find('\0\1', #key + 1, true)
    new_slots = call('ZLEXCOUNT', ORDER, range(place:sub(1, behind_publisher)))
  end
  if new_slots >= max_slots or share_entries >= max_share_entries or share_bytes + size > max_share_bytes then
    return refused(new_slots, 0, 0, share_entries, share_bytes)
  end
  if totals.entries - (standing and 1 or 0) >= max_entries or totals.bytes - standing_size + size > max_bytes then
    local entries, bytes = make_room(slot, struct.unpack('>I4', row, 17), size, evicted)
    if entries then return refused(0, entries, bytes, 0, 0) end
    standing = first(slot)
    slots = call('ZLEXCOUNT', ORDER, min, max)
  end

  local due = 'V' .. expires_of(place) .. op
  if standing and standing_op == op then
    call('HSET', ROWS, 'v' .. op, value)
    call('ZADD', ORDER, 0, due)
    count(place, 0, #value)
    return 'D'
  end
  local displaced = standing and forget(standing_op)
  if slots == (standing and 1 or 0) then totals.keys = totals.keys + 1 end
  totals.arrivals = totals.arrivals + 1
  row = struct.pack('>I4I4', math.floor(totals.arrivals / 2 ^ 32), totals.arrivals % 2 ^ 32) .. row:sub(9)
  local members = members_of(op, row)
  if value then
    members[#members + 1] = due
    call('HSET', ROWS, 'e' .. op, row, 'v' .. op, value)
  else
    call('HSET', ROWS, 'e' .. op, row)
  end
  local scored = {}
  for i, member in ipairs(members) do scored[2 * i - 1], scored[2 * i] = 0, member end
  call('ZADD', ORDER, unpack(scored))
  count(place, 1, size)
  return displaced and 'X' .. displaced or 'I'
end

keep(tonumber(ARGV[4]))
local retired = call('HGET', ROWS, '#retired')
if not retired or less(ARGV[7], retired) then retired = ('\0'):rep(8) end
local outcomes = {}
for i = 16, #ARGV, 4 do
  local place, row, value = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1' and ARGV[i + 3]
  local outcome, evicted = 'R', {}
  if not less(row:sub(9, 16), retired) then outcome = join(place, row, value, evicted) end
  outcomes[#outcomes + 1] = outcome .. struct.pack('>I4', #evicted) .. table.concat(evicted)
end
write_counts()
return said(table.concat(outcomes))
""",
)
# ARGV from 4: op ids. Says which of them were held.
REMOVE_OPS = free_script(
    _ENTRIES,
    _CHANGES,
    r"""
local held = {}
for i = 4, #ARGV do held[#held + 1] = forget(ARGV[i]) end
write_counts()
return said(table.concat(held))
""",
)
# ARGV from 4: the time of retirement; the latest such that counts if it was kept; the first time that is not past;
# limit; the time before which own slots are forgotten. Says the numbers of values, records, providers and own slots (4
# bytes each), then what retired.
DELETE_EXPIRED = free_script(
    _ENTRIES,
    _CHANGES,
    FORGET_RECORDS,
    r"""
local retired, kept = ARGV[4], call('HGET', ROWS, '#retired')
if kept and not less(ARGV[5], kept) and less(retired, kept) then retired = kept end
call('HSET', ROWS, '#retired', retired)
local left = tonumber(ARGV[7])

local function due(kind, before)
  local members = call('ZRANGEBYLEX', ORDER, '[' .. kind, '(' .. kind .. before, 'LIMIT', 0, left)
  left = left - #members
  return members
end

local gone = {}
for _, member in ipairs(due('R', retired)) do gone[#gone + 1] = forget(member:sub(10)) end
local values = due('V', ARGV[6])
for _, member in ipairs(values) do drop_value(member) end
local records = forget_due(RECORDS, ARGV[6], left)
local providers = forget_due(PROVIDERS, ARGV[6], left - records)
left = left - records - providers
local own_slots = due('O', ARGV[8])
for _, member in ipairs(own_slots) do
  local name = 'o' .. member:sub(10)
  call('HDEL', ROWS, name)
  call('ZREM', ORDER, member, name)
end
write_counts()
return said(struct.pack('>I4I4I4I4', #values, records, providers, #own_slots) .. table.concat(gone))
""",
)
# ARGV from 2: 's' and the key terminated; publisher and subkey terminated, behind which to start, or ''; now; '1' to
# include what has expired or '0'; '1' for the newest only or '0'; max bytes; the number of publishers; these, and then
# subkeys, all terminated.
# Returns '1' if there is more, then each entry's envelope and its value or nil.
GET_ENTRIES = read_script(
    _ENTRIES,
    r"""
local key, behind, now = ARGV[2], ARGV[3], ARGV[4]
local include_expired, newest_only, max_bytes = ARGV[5] == '1', ARGV[6] == '1', tonumber(ARGV[7])
local publishers, subkeys = {}, {}
local last_publisher = 8 + tonumber(ARGV[8])
for i = 9, #ARGV do
  if i <= last_publisher then publishers[ARGV[i]] = true else subkeys[ARGV[i]] = true end
end
local any_publisher, any_subkey = next(publishers) == nil, next(subkeys) == nil

-- Visit the places of the chosen slots in order, until `visit` returns true.
local function each_place(min, visit)
  local _, max = range(key)
  while true do
    local places = call('ZRANGEBYLEX', ORDER, min, max, 'LIMIT', 0, 100)
    for _, place in ipairs(places) do
      local _, stop = place:find('\0\1', #key + 1, true)
      if (any_publisher or publishers[place:sub(#key + 1, stop)])
        and (any_subkey or subkeys[place:sub(stop + 1, -50)])
        and visit(place) then return end
    end
    if #places < 100 then return end
    min = '(' .. places[100]
  end
end

local function is_tombstone(place) return place:byte(-1) == 1 end
local function is_unexpired(place) return less(now, expires_of(place)) end

local newest = nil
if newest_only then
  each_place('[' .. key, function(place)
    if is_unexpired(place) and not is_tombstone(place) and not (newest and less(version_of(place), newest)) then
      newest = version_of(place)
    end
  end)
end

local page, page_bytes = {'0'}, 0
local start = '[' .. key
if behind ~= '' then start = '[' .. key .. behind:sub(1, -2) .. '\2' end
each_place(start, function(place)
  if not (include_expired or is_tombstone(place) or is_unexpired(place))
    or newest and less(version_of(place), newest) then return false end
  local op = op_of(place)
  local row = call('HGET', ROWS, 'e' .. op)
  local _, stop = place_in(row)
  local value = is_unexpired(place) and call('HGET', ROWS, 'v' .. op)
  page_bytes = page_bytes + #row - stop + (value and #value or 0)
  if #page > 1 and page_bytes > max_bytes then
    page[1] = '1'
    return true
  end
  page[#page + 1] = row:sub(stop + 1)
  page[#page + 1] = value
end)
return page
""",
)
# ARGV from 2: now, op ids. Returns each entry's envelope and its value or nil.
GET_OPS = read_script(
    _ENTRIES,
    r"""
local found = {}
for i = 3, #ARGV do
  local row = call('HGET', ROWS, 'e' .. ARGV[i])
  if row then
    local place, stop = place_in(row)
    found[#found + 1] = row:sub(stop + 1)
    found[#found + 1] = less(ARGV[2], expires_of(place)) and call('HGET', ROWS, 'v' .. ARGV[i])
  end
end
return found
""",
)
# ARGV from 2: the first sector and the last; the min and the max behind the sector; limit for each sector.
# Returns the members of kind t of each sector, joined.
OPS = read_script(
    r"""
local sectors = {}
for sector = tonumber(ARGV[2]), tonumber(ARGV[3]) do
  local part = 't' .. struct.pack('>I2', sector)
  local min, max = ARGV[4]:sub(1, 1) .. part .. ARGV[4]:sub(2), ARGV[5]:sub(1, 1) .. part .. ARGV[5]:sub(2)
  sectors[#sectors + 1] = table.concat(call('ZRANGEBYLEX', ORDER, min, max, 'LIMIT', 0, ARGV[6]))
end
return sectors
""",
)
# ARGV from 2: where to start; limit. Returns members of kind t, joined.
SCAN_OPS = read_script("return {table.concat(call('ZRANGEBYLEX', ORDER, ARGV[2], '(u', 'LIMIT', 0, ARGV[3]))}")
# ARGV from 2: how op ids begin. Returns those that begin so, each beginning's by themselves.
FIND_OPS = read_script(
    r"""
local found = {}
for i = 2, #ARGV do
  local min = '[i' .. ARGV[i]
  local members = call('ZRANGEBYLEX', ORDER, min, min .. ('\255'):rep(32))
  for _, member in ipairs(members) do found[#found + 1] = member:sub(2) end
end
return found
"""
)
# ARGV from 2: the key terminated behind which to start, or ''; limit. Returns keys, terminated.
KEYS = read_script(
    r"""
local keys = {}
local min = ARGV[2] == '' and '[s' or '[s' .. ARGV[2]:sub(1, -2) .. '\2'
while #keys < tonumber(ARGV[3]) do
  local place = call('ZRANGEBYLEX', ORDER, min, '(t', 'LIMIT', 0, 1)[1]
  if not place then break end
  local part = first_part(place)
  keys[#keys + 1] = part:sub(2)
  min = '[' .. part:sub(1, -2) .. '\2'
end
return keys
""",
)

# The way from schema 2, in which ops had no order of their ids. It may be done again.

# ARGV from 4: the member of kind t to start from, as a min; limit.
# Says the member that it came to, or '' if there are no more.
INDEX_OPS = write_script(
    r"""
local members = call('ZRANGEBYLEX', ORDER, ARGV[4], '(u', 'LIMIT', 0, ARGV[5])
for _, member in ipairs(members) do call('ZADD', ORDER, 0, 'i' .. member:sub(12, 43)) end
return said(#members == tonumber(ARGV[5]) and members[#members] or '')
""",
)
