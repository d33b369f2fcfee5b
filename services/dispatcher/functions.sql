-- What becomes of tasks when they end, and who runs what next: the steps that run for every task.
--
-- They are functions of the database because their cost is round trips: one call handles
-- everything that arrived together. All of them need the dispatcher's lock (see claims.py), which
-- `accept_tasks` and `exchange_runs` take themselves. Where rows are looked up for others, `any(array(…))` says so twice:
-- a join alone may be planned as a walk through all rows while there are only few.
-- Migrations install this file; a change of it needs a migration that installs it again.


-- Takes ended tasks out of their queues and grants what it is the turn of. The granted claims of
-- a resource always stand before the waiting ones, so only the first waiting claim decides,
-- however long the queue is. A lease whose last claim is granted runs from that moment.
-- Returns the tasks that became ready. contract: dispatcher §3.1
create or replace function release_claims(ended bigint[], at timestamptz)
returns table (ready_id uuid, ready_queue text)
language plpgsql as $$
begin
  return query
  with gone as (
    delete from claim where claim.seq = any(ended) returning claim.resource
  ), freed as (
    select distinct resource from gone
  ), turn as (
    select freed.resource, head.seq, head.place, head.exclusive
    from freed cross join lateral (
      select claim.seq, claim.place, claim.exclusive from claim
      where claim.resource = freed.resource and not claim.granted and claim.seq <> all(ended)
      order by (claim.seq + 0) limit 1) as head
  ), next as (
    select turn.seq, turn.place from turn
    where turn.exclusive and not exists (
      select from claim
      where claim.resource = turn.resource and claim.granted and claim.seq <> all(ended))
    union all
    select reader.seq, reader.place
    from turn
    left join lateral (
      select claim.seq from claim
      where claim.resource = turn.resource and claim.exclusive and not claim.granted
        and claim.seq <> all(ended)
      order by (claim.seq + 0) limit 1) as writer on true
    cross join lateral (
      select claim.seq, claim.place from claim
      where claim.resource = turn.resource and not claim.granted and claim.seq <> all(ended)
        and (writer.seq is null or (claim.seq + 0) < writer.seq)) as reader
    where not turn.exclusive and not exists (
      select from claim
      where claim.resource = turn.resource and claim.granted and claim.exclusive
        and claim.seq <> all(ended))
  ), granted as (
    update claim set granted = true from next
    where claim.seq = next.seq and claim.place = next.place
      and claim.seq = any(array(select next.seq from next))
    returning claim.seq
  ), turns as (
    select granted.seq, count(*)::int as claims from granted group by granted.seq
  ), unblocked as (
    update task set
      blocked_by = task.blocked_by - held.claims,
      unblocked_at = case when task.blocked_by = held.claims then at end,
      state = case when held.lease then 'running' else task.state end,
      updated_at = case when held.lease then at else task.updated_at end,
      started_at = case when held.lease then at else task.started_at end,
      fence = case when held.lease then nextval('fence_seq') else task.fence end,
      expires_at = case when held.lease then at + make_interval(secs => task.lease_seconds)
                        else task.expires_at end
    from (
      select turns.seq, turns.claims,
             before.lease_seconds is not null and before.blocked_by = turns.claims as lease
      from turns join task as before
        on before.seq = turns.seq and before.seq = any(array(select turns.seq from turns))) as held
    where task.seq = held.seq and task.seq = any(array(select turns.seq from turns))
    returning task.id, task.queue, task.blocked_by
  )
  select unblocked.id, unblocked.queue::text from unblocked where unblocked.blocked_by = 0;
end $$;


-- Leaves a note to user_tasks for each of these tasks that a person sees, and the setting
-- lyceum.told for the rest of the transaction if there was one. A note describes its task whole,
-- so any of them may come first. `progress` says, by id, how far those came that ended.
create or replace function tell_user_tasks(ids uuid[], at timestamptz, progress jsonb default null)
returns void
language plpgsql as $$
begin
  insert into outbox (receiver, name, payload)
  select 'user_tasks', 'on_lifecycle', jsonb_build_object(
    'task_id', id,
    'state', case state
      when 'waiting' then case when attempt > 1 then 'Retrying' else 'Pending' end
      when 'running' then 'In Progress' when 'completed' then 'Succeeded'
      when 'failed' then 'Failed' when 'canceled' then 'Canceled' end,
    'at', at,
    'attempt', attempt,
    'error', case when coalesce(error ->> 'description', error ->> 'reason') is not null
      then jsonb_build_object(
        'code', coalesce(error ->> 'code', 'failed'),
        'message', coalesce(error ->> 'description', error ->> 'reason')) end,
    'user', username,
    'name', user_task -> 'name',
    'task_class', name,
    'task_type', coalesce(user_task ->> 'task_type', ''),
    'total_steps', coalesce(user_task -> 'total_steps', '1'),
    'parameters', coalesce(user_task -> 'parameters', '{}'),
    'containers', coalesce(user_task -> 'containers', '[]'),
    'progress', progress -> id::text)
  from task
  where id = any(ids) and user_task is not null and state <> 'canceling'
  order by seq;
  if found then
    perform set_config('lyceum.told', 'yes', true);
  end if;
end $$;


-- Everything that follows from the ends of these tasks, which have their final states already:
-- their resources are freed, their running reports end as they did, user_tasks is told, and what
-- depends on them in a broken chain is canceled. Returns the tasks that became ready.
create or replace function end_tasks(ids uuid[], at timestamptz, progress jsonb default null)
returns table (ready_id uuid, ready_queue text)
language plpgsql as $$
declare
  seqs bigint[];
  broken uuid[];
  dependents uuid[];
  seen boolean;
begin
  if cardinality(coalesce(ids, '{}')) = 0 then
    return;
  end if;
  select array_agg(seq), bool_or(user_task is not null),
         array_agg(chain_id) filter (where chain_id is not null and state <> 'completed')
    into seqs, seen, broken
    from task where id = any(ids);
  update taskreport set state = task.state, updated_at = at
    from task where task.id = taskreport.task_id and task.id = any(ids)
      and taskreport.task_id = any(ids) and taskreport.state = 'running';
  if seen then
    perform tell_user_tasks(ids, at, progress);
  end if;
  return query select * from release_claims(seqs, at);
  if broken is not null then
    with stopped as (
      update task set state = 'canceled', finished_at = at, updated_at = at, retry_at = null,
        error = '{"reason": "A task before it in its chain did not complete."}'
      where chain_id = any(broken) and dependent and state || '' = 'waiting'
      returning id)
    select array_agg(id) into dependents from stopped;
    return query select * from end_tasks(dependents, at);
  end if;
end $$;


-- Stores tasks in the order of `items` at the end of their resources' queues; known ids are passed
-- over. A claim is granted when nothing conflicting stands before it: neither in the table, where
-- everything is earlier, nor in this batch. Where claims wait, an exclusive one is held or waits
-- first, so who shares need not look for it among them. `offset 0` keeps the planner from reading
-- the whole table into a hash, which it likes to do while that is empty.
-- Returns what is new, and what became ready; user_tasks is told, and a task that comes into a
-- chain that is broken already ends at once. contract: dispatcher §3.1
create or replace function accept_tasks(items jsonb, at timestamptz)
returns table (task_id uuid, task_queue text, is_new boolean, is_ready boolean)
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
set enable_material = off
as $$
declare
  ids uuid[];
  queues text[];
  free boolean[];
  seen boolean;
  broken uuid[];
  stopped uuid[];
begin
  perform pg_advisory_xact_lock(7120042);
  with asked as materialized (
    select * from jsonb_to_recordset(items) as r (
      place int, id uuid, name text, queue text, arguments jsonb, username text, logging_cid text,
      parent_id uuid, group_id uuid, chain_id uuid, dependent boolean, immediate boolean,
      deferred boolean, versions jsonb, requirement_id int, profile_options text[],
      exclusive text[], shared text[], reserved text[], user_task jsonb, repeatable boolean,
      lease_seconds float, wait_seconds float)
    where not exists (select from task where task.id = r.id offset 0)
  ), placed as materialized (
    select nextval('task_seq_seq') as seq, ordered.*
    from (select row_number() over (order by place) as number, asked.* from asked
          order by place) as ordered
  ), wish as (
    select seq, named.place::int, named.resource, named.place <= cardinality(exclusive) as exclusive
    from placed cross join lateral unnest(exclusive || shared)
      with ordinality as named (resource, place)
  ), judged as materialized (
    select seq, place, resource, exclusive,
           case when exclusive
             then count(*) over before = 0
                  and not exists (
                    select from claim where claim.resource = wish.resource and granted offset 0)
             else not coalesce(bool_or(exclusive) over before, false)
                  and not exists (
                    select from claim
                    where claim.resource = wish.resource and claim.exclusive and granted offset 0)
           end
           and not exists (
             select from claim where claim.resource = wish.resource and not granted offset 0)
           as granted
    from wish
    window before as (
      partition by resource order by seq rows between unbounded preceding and 1 preceding)
  ), stored as (
    insert into claim (seq, place, resource, exclusive, granted)
    select seq, place, resource, exclusive, granted from judged
  ), waits as materialized (
    -- By the task's number in this batch: each has a claim, on its domain. A join of the two would
    -- compare all with all, as hashing is off.
    select array_agg(claims order by seq) as claims
    from (select seq, count(*) filter (where not granted)::int as claims
          from judged group by seq) as one
  ), made as (
    insert into task (
      id, seq, state, name, queue, arguments, username, logging_cid, parent_id, group_id,
      chain_id, dependent, immediate, deferred, versions, requirement_id, profile_options, owned,
      reserved, user_task, repeatable, attempt, blocked_by, created_at, updated_at, unblocked_at,
      lease_seconds, started_at, fence, expires_at)
    overriding system value
    select
      id, placed.seq, case when granted_lease then 'running' else 'waiting' end, name, queue,
      arguments, username, logging_cid, parent_id, group_id, chain_id, dependent, immediate,
      deferred, versions, requirement_id, profile_options, true, reserved, user_task, repeatable,
      1, ungranted.claims, at, at, case when ungranted.claims = 0 then at end, lease_seconds,
      case when granted_lease then at end,
      case when granted_lease then nextval('fence_seq') end,
      at + make_interval(secs => case when granted_lease then lease_seconds else wait_seconds end)
    from placed cross join waits
    cross join lateral (select waits.claims[placed.number] as claims) as ungranted
    cross join lateral (
      select ungranted.claims = 0 and lease_seconds is not null as granted_lease) as lease
    returning task.id, task.queue, task.blocked_by = 0 as free, task.user_task, task.chain_id,
              task.dependent
  )
  select array_agg(made.id), array_agg(made.queue), array_agg(made.free),
         bool_or(made.user_task is not null),
         array_agg(made.chain_id) filter (where made.dependent and made.chain_id is not null)
    into ids, queues, free, seen, broken from made;
  return query
    select new.id, new.queue, true, new.free from unnest(ids, queues, free) as new (id, queue, free);
  if seen then
    perform tell_user_tasks(ids, at);
  end if;
  if broken is not null then
    -- Links of one chain may arrive apart from each other.
    with late as (
      update task set state = 'canceled', finished_at = at, updated_at = at, retry_at = null,
        error = '{"reason": "A task before it in its chain did not complete."}'
      where chain_id = any(broken) and dependent and state || '' = 'waiting' and exists (
        select from task as other
        where other.chain_id = task.chain_id and other.state in ('failed', 'canceled', 'canceling'))
      returning id)
    select array_agg(id) into stopped from late;
    return query select ready_id, ready_queue, false, true from end_tasks(stopped, at);
  end if;
end $$;


-- Ends runs as their workers report. A report counts only with the fence of the run; a task that
-- was asked to cancel meanwhile ends canceled, whatever its run came to; a run that is to be
-- repeated keeps its place and its resources. `counted` are the reports that counted, now or
-- when they were sent before; `ready_…` the tasks that became ready, and their queues.
-- contract: dispatcher §1.2 DI-01, DI-02
create or replace function finish_runs(
  reports jsonb, at timestamptz,
  out counted uuid[], out ready_ids uuid[], out ready_queues text[])
language plpgsql as $$
declare
  ended uuid[];
  again uuid[];
begin
  with report as materialized (
    select * from jsonb_to_recordset(reports) as r (
      task_id uuid, fence bigint, state text, error jsonb, result jsonb, retry_seconds float)
  ), changed as (
    update task set
      state = case when task.state = 'canceling' then 'canceled'
                   when report.state = 'retry' then 'waiting' else report.state end,
      error = case when task.state = 'canceling' or report.state = 'retry' then null
                   else nullif(report.error, 'null') end,
      result = case when task.state = 'canceling' or report.state = 'retry' then null
                    else nullif(report.result, 'null') end,
      attempt = task.attempt + (task.state <> 'canceling' and report.state = 'retry')::int,
      retry_at = case when task.state <> 'canceling' and report.state = 'retry'
                           and report.retry_seconds > 0
                      then at + make_interval(secs => report.retry_seconds) end,
      finished_at = case when task.state = 'canceling' or report.state <> 'retry' then at end,
      updated_at = at, worker_id = null
    from report
    where task.id = report.task_id and task.fence = report.fence
      and task.id = any(array(select report.task_id from report))
      and task.state || '' in ('running', 'canceling')
    returning task.id, task.state
  )
  select array_agg(changed.id) filter (where changed.state <> 'waiting'),
         array_agg(changed.id) filter (where changed.state = 'waiting')
    into ended, again from changed;
  counted := coalesce(ended, '{}') || coalesce(again, '{}');
  if cardinality(counted) < jsonb_array_length(reports) then
    counted := counted || array(
      select task.id
      from jsonb_to_recordset(reports) as r (task_id uuid, fence bigint)
      join task on task.id = r.task_id and task.fence = r.fence
        and task.id = any(array(select (sent ->> 'task_id')::uuid
                                from jsonb_array_elements(reports) as sent))
      where task.state not in ('running', 'canceling'));
  end if;
  select coalesce(array_agg(ready_id), '{}'), coalesce(array_agg(ready_queue), '{}')
    into ready_ids, ready_queues from end_tasks(ended, at, (
      select jsonb_object_agg(report ->> 'task_id', report -> 'progress')
      from jsonb_array_elements(reports) as report
      where jsonb_typeof(report -> 'progress') = 'object'));
  if again is not null then
    perform tell_user_tasks(again, at);
    select ready_ids || coalesce(array_agg(id), '{}'),
           ready_queues || coalesce(array_agg(queue::text), '{}')
      into ready_ids, ready_queues
      from task where id = any(again) and retry_at is null;
  end if;
end $$;


-- Gives a worker ready tasks, as many as it has room for: immediate ones first, then in the order
-- of acceptance. Every step is a probe of an index, whatever waits. A turn that is not newer than
-- the worker's last one gives nothing.
create or replace function take_runs(worker uuid, its_turn bigint, room int, at timestamptz)
returns setof task
language plpgsql as $$
begin
  return query
  with taker as (
    update worker as w set turn = its_turn where w.id = take_runs.worker and w.turn < its_turn
    returning w.queue, w.meets
  ), chosen as (
    select ready.id
    from taker cross join lateral (
      select one.id
      from unnest(taker.meets) as met (requirement)
      cross join lateral (
        select t.id, t.seq, t.immediate from task as t
        where t.queue = taker.queue and t.requirement_id = met.requirement
          and t.state || '' = 'waiting' and t.blocked_by = 0 and t.lease_seconds is null
          and t.retry_at is null
        order by (not t.immediate), t.seq limit room) as one
      order by (not one.immediate), one.seq limit room) as ready
  )
  update task set state = 'running', started_at = coalesce(task.started_at, at), updated_at = at,
                  fence = nextval('fence_seq'), worker_id = take_runs.worker
  where task.id = any(array(select chosen.id from chosen))
  returning task.*;
end $$;


-- One run as its worker gets it.
create or replace function assignment_of(given task) returns jsonb
language sql immutable as $$
  select jsonb_build_object(
    'task_id', given.id, 'attempt', given.attempt, 'fence', given.fence,
    'function', substr(given.name, length(given.queue) + 2), 'arguments', given.arguments,
    'username', given.username, 'logging_cid', given.logging_cid, 'group_id', given.group_id,
    'immediate', given.immediate, 'profile_options', to_jsonb(given.profile_options))
$$;


-- Workers report ends and take new runs: one call, one transaction, for all that came together.
-- Returns, in the order of `items`, each worker's answer, and the queues in which tasks were left
-- ready; a last row says whether notes were left. contract: dispatcher §4.3
create or replace function exchange_runs(items jsonb, at timestamptz)
returns table (answer jsonb, wake text[], told boolean)
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
set enable_material = off
as $$
declare
  item jsonb;
  reports jsonb;
  counted uuid[] := '{}';
  ready_ids uuid[] := '{}';
  ready_queues text[] := '{}';
  all_taken uuid[] := '{}';
  its_id uuid;
  room int;
  again jsonb;
  starts jsonb;
  taken uuid[];
  seen boolean;
  its_queue text;
begin
  perform pg_advisory_xact_lock(7120042);
  select jsonb_agg(report) into reports
    from jsonb_array_elements(items) as i, jsonb_array_elements(i -> 'ended') as report;
  if reports is not null then
    select f.counted, f.ready_ids, f.ready_queues into counted, ready_ids, ready_queues
      from finish_runs(reports, at) as f;
  end if;
  for item in select * from jsonb_array_elements(items) loop
    its_id := (item ->> 'worker_id')::uuid;
    again := '[]';
    starts := '[]';
    taken := '{}';
    wake := '{}';
    if jsonb_typeof(item -> 'holding') = 'array' then
      again := forgotten_runs(
        its_id, array(select jsonb_array_elements_text(item -> 'holding'))::uuid[], at);
    end if;
    room := greatest(0, (item ->> 'room')::int - jsonb_array_length(again));
    if room > 0 then
      select coalesce(jsonb_agg(assignment_of(t) order by not t.immediate, t.seq), '[]'),
             coalesce(array_agg(t.id), '{}'), bool_or(t.user_task is not null), max(t.queue)
        into starts, taken, seen, its_queue
        from take_runs(its_id, (item ->> 'turn')::bigint, room, at) as t;
      if seen then
        perform tell_user_tasks(taken, at);
      end if;
      if cardinality(taken) = room then
        wake := array[its_queue];
      end if;
      all_taken := all_taken || taken;
    end if;
    answer := jsonb_build_object(
      'known', taken <> '{}' or exists (select from worker where id = its_id),
      'ended', coalesce((
        select jsonb_agg(jsonb_build_object(
          'task_id', report ->> 'task_id',
          'accepted', (report ->> 'task_id')::uuid = any(counted)))
        from jsonb_array_elements(item -> 'ended') as report), '[]'),
      'start', again || starts);
    return next;
  end loop;
  answer := null;
  told := current_setting('lyceum.told', true) = 'yes';
  wake := array(
    select distinct ready.queue from unnest(ready_ids, ready_queues) as ready (id, queue)
    where ready.id <> all(all_taken));
  return next;
end $$;


-- Runs that were given to a worker in an answer it never got. Those that were asked to cancel
-- meanwhile never began: they end here.
create or replace function forgotten_runs(its_id uuid, holding uuid[], at timestamptz)
returns jsonb
language plpgsql as $$
declare
  stopped uuid[];
begin
  with never_begun as (
    update task set state = 'canceled', finished_at = at, updated_at = at, worker_id = null
    where worker_id = its_id and state = 'canceling' and id <> all(holding)
    returning id)
  select array_agg(id) into stopped from never_begun;
  perform end_tasks(stopped, at);
  return coalesce((
    select jsonb_agg(assignment_of(t) order by t.seq) from task as t
    where t.worker_id = its_id and t.state = 'running' and t.id <> all(holding)), '[]');
end $$;
