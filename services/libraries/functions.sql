-- What the database itself does for libraries: writes that would be many statements, and rows that
-- follow drafts, so that no way of changing a draft can forget them. Migrations install this file;
-- a change of it needs a migration that installs it again.
--
-- Every plan is made once, maybe while all tables are empty or what is known of them is old, so none
-- may be one that walks through a table: no hashing, no merging, and no joins. Rows are looked up for
-- others by `any(array(...))`, by a subquery for each, or behind `offset 0`, which no plan turns round.


-- The words of an OLX text, without its tags.
create or replace function words_of(olx text) returns text
language sql immutable parallel safe as $$
  select left(
    regexp_replace(
      regexp_replace(olx, '<!--.*?-->|<(style|script)[ >].*?</\1>', ' ', 'g'),
      '<[^>]*>|&[a-z#0-9]+;|\]\]>', ' ', 'g'),
    100000)
$$;


-- What is found by: one row of words for each live draft, as it is now.
create or replace function keep_findable(entities bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
begin
  delete from findable where entity_id = any(array(
    select draft.entity_id from draft
    where draft.entity_id = any(entities) and draft.version_id is null));
  insert into findable (entity_id, library_id, title, tags, body)
  select draft.entity_id,
         (select entity.library_id from entity where entity.id = draft.entity_id),
         (select version.title from version where version.id = draft.version_id),
         coalesce((select string_agg(tag.name, ' ' order by tag.name) from tag
                   where tag.entity_id = draft.entity_id), ''),
         coalesce((select words_of(media.text) from media where media.id = (
                     select version_media.media_id from version_media
                     where version_media.version_id = draft.version_id
                       and version_media.path = 'block.xml')), '')
  from draft
  where draft.entity_id = any(entities) and draft.version_id is not null
  order by draft.entity_id
  on conflict (entity_id) do update set
    title = excluded.title, tags = excluded.tags, body = excluded.body;
end $$;


-- Notes which of these drafts differ from what is published.
create or replace function keep_unpublished(entities bigint[]) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
begin
  delete from unpublished where entity_id = any(array(
    select draft.entity_id from draft
    where draft.entity_id = any(entities) and draft.version_id is not distinct from (
      select published.version_id from published where published.entity_id = draft.entity_id)));
  insert into unpublished (entity_id, library_id, version_id)
  select draft.entity_id,
         (select entity.library_id from entity where entity.id = draft.entity_id),
         draft.version_id
  from draft
  where draft.entity_id = any(entities) and draft.version_id is distinct from (
    select published.version_id from published where published.entity_id = draft.entity_id)
  order by draft.entity_id
  on conflict (entity_id) do update set version_id = excluded.version_id;
end $$;


create or replace function draft_was_made() returns trigger
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
declare entities bigint[];
begin
  select array_agg(entity_id) into entities from moved;
  if entities is not null then
    perform keep_findable(entities);
    perform keep_unpublished(entities);
    insert into live_count (library_id, kind, items)
    select entity.library_id, entity.kind, count(*) from entity
    where entity.id = any(array(select entity_id from moved where version_id is not null))
    group by entity.library_id, entity.kind;
  end if;
  return null;
end $$;


create or replace function draft_was_moved() returns trigger
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
declare entities bigint[];
begin
  select array_agg(entity_id) into entities from (
    select entity_id, version_id from moved except select entity_id, version_id from before
  ) as different;
  if entities is not null then
    perform keep_findable(entities);
    perform keep_unpublished(entities);
    insert into live_count (library_id, kind, items)
    select entity.library_id, entity.kind, sum(different.items) from (
      select entity_id, sum(items) as items from (
        select entity_id, 1 as items from moved where version_id is not null
        union all
        select entity_id, -1 from before where version_id is not null
      ) as sides group by entity_id having sum(items) <> 0
    ) as different
    cross join lateral (
      select library_id, kind from entity where entity.id = different.entity_id offset 0) as entity
    group by entity.library_id, entity.kind;
  end if;
  return null;
end $$;


-- Readers see what authors have, so it is not unpublished any more. Nobody waits here: a draft that
-- is being edited stays noted, and whoever reads the notes looks at the pointers themselves.
create or replace function published_was_moved() returns trigger
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
begin
  delete from unpublished where entity_id = any(array(
    select unpublished.entity_id from unpublished
    where unpublished.entity_id = any(array(select entity_id from moved))
      and unpublished.version_id is not distinct from (
        select published.version_id from published
        where published.entity_id = unpublished.entity_id)
    for update skip locked));
  return null;
end $$;


-- How many live items of a library there are: changes are noted apart, so that nobody waits for
-- somebody else's, and added up by whoever holds the library when they have become many.
create or replace function add_up_live(library bigint) returns void
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
begin
  if (select count(*) from (
        select from live_count where library_id = library limit 50) as few) >= 50 then
    with gone as (
      delete from live_count where library_id = library returning kind, items
    )
    insert into live_count (library_id, kind, items)
    select library, kind, sum(items) from gone group by kind;
  end if;
end $$;


-- What authors have and readers do not, and the other way round: deleted drafts have no version.
create or replace function differences(library bigint)
returns table (entity_id bigint, published bigint, draft bigint)
language sql stable as $$
  select pair.entity_id, pair.published, pair.draft from (
    select unpublished.entity_id,
           (select published.version_id from published
            where published.entity_id = unpublished.entity_id) as published,
           (select draft.version_id from draft
            where draft.entity_id = unpublished.entity_id) as draft
    from unpublished where unpublished.library_id = library offset 0
  ) as pair where pair.draft is distinct from pair.published
$$;


-- Whose drafts hold an entity without a pin, and at which of their versions.
create or replace function holders_in_draft(child bigint)
returns table (parent bigint, version bigint)
language sql stable as $$
  select above.parent, above.version from (
    select dependency.version_id as version, (
      select draft.entity_id from draft where draft.version_id = dependency.version_id) as parent
    from dependency where dependency.entity_id = child offset 0
  ) as above where above.parent is not null
$$;


-- The same of what is published.
create or replace function holders_in_public(child bigint)
returns table (parent bigint, version bigint)
language sql stable as $$
  select above.parent, above.version from (
    select dependency.version_id as version, (
      select published.entity_id from published
      where published.version_id = dependency.version_id) as parent
    from dependency where dependency.entity_id = child offset 0
  ) as above where above.parent is not null
$$;


-- Points drafts at versions, or at nothing, in one change log, and carries the news up to all that
-- hold them. Returns the log, or null when all pointed there already. contract: content_core §2.2
create or replace function move_drafts(
  library bigint, entities bigint[], versions bigint[], at timestamptz, who text
) returns table (log bigint, moved bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  this bigint;
  many bigint;
  held bigint[];
  children bigint[];
  parents bigint[];
  shown bigint[];
  touched bigint[];
begin
  -- What moves and everything above it, in one order: whoever else comes waits before it begins.
  -- A container that takes an entity in after this tells of that itself, and is left alone.
  select array_agg(locked.entity_id) into held from (
    with recursive up (entity_id) as (
      select unnest(entities)
      union
      select above.parent from up cross join lateral holders_in_draft(up.entity_id) as above
    )
    select draft.entity_id from draft where draft.entity_id = any(array(select up.entity_id from up))
    order by draft.entity_id for update
  ) as locked;
  insert into draft_log (uuid, library_id, changed_at, changed_by)
  values (gen_random_uuid(), library, at, who) returning id into this;
  insert into draft_record (log_id, entity_id, old_version_id, new_version_id)
  select this, pointer.entity_id, pointer.was, pointer.is_now from (
    select wanted.entity_id, wanted.version_id as is_now, (
      select draft.version_id from draft where draft.entity_id = wanted.entity_id) as was
    from unnest(entities, versions) as wanted (entity_id, version_id) offset 0
  ) as pointer
  where pointer.was is distinct from pointer.is_now
  order by pointer.entity_id;
  get diagnostics many = row_count;
  if many = 0 then
    delete from draft_log where id = this;
    return query select cast(null as bigint), many;
    return;
  end if;
  insert into draft (entity_id, version_id, record_id)
  select entity_id, new_version_id, id from draft_record where log_id = this
  order by entity_id
  on conflict (entity_id) do update
  set version_id = excluded.version_id, record_id = excluded.record_id;

  -- All edges from what moved upwards, each once: `union` ends on what was seen before.
  with recursive edge (child, parent, version) as (
    select record.entity_id, above.parent, above.version
    from draft_record record cross join lateral holders_in_draft(record.entity_id) as above
    where record.log_id = this
    union
    select edge.parent, above.parent, above.version
    from edge cross join lateral holders_in_draft(edge.parent) as above
  )
  select array_agg(edge.child), array_agg(edge.parent), array_agg(edge.version)
  into children, parents, shown from edge
  -- `is true` has both looked up in a set; as joins, all edges would meet all that is held.
  where (edge.parent in (select unnest(held) union all select unnest(entities))) is true
    and (edge.child in (select unnest(held) union all select unnest(entities))) is true;
  if children is not null then
    with made as (
      insert into draft_record (log_id, entity_id, old_version_id, new_version_id)
      select distinct this, up.entity_id, up.version_id, up.version_id
      from unnest(parents, shown) as up (entity_id, version_id)
      order by up.entity_id
      on conflict (log_id, entity_id) do nothing
      returning entity_id
    )
    select array_agg(made.entity_id) into touched from made;
    update draft set record_id = (
      select id from draft_record where log_id = this and entity_id = draft.entity_id)
    where draft.entity_id = any(touched);
    insert into draft_side_effect (cause_id, effect_id)
    select pair.cause, pair.effect from (
      select (select id from draft_record where log_id = this and entity_id = edge.child) as cause,
             (select id from draft_record where log_id = this and entity_id = edge.parent) as effect
      from unnest(children, parents) as edge (child, parent)
    ) as pair
    where pair.cause is not null and pair.effect is not null
    on conflict do nothing;
  end if;
  return query select this, many;
end $$;


-- Points readers at versions in one publish, likewise. The caller holds the library.
-- contract: content_core §2.5, §2.6
create or replace function publish_versions(
  library bigint, entities bigint[], old_versions bigint[], new_versions bigint[],
  asked boolean[], about text, at timestamptz, who text
) returns bigint
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  this bigint;
  children bigint[];
  parents bigint[];
  shown bigint[];
  touched bigint[];
begin
  insert into publish_log (uuid, library_id, message, published_at, published_by)
  values (gen_random_uuid(), library, about, at, who) returning id into this;
  insert into publish_record (log_id, entity_id, old_version_id, new_version_id, direct,
                              draft_log_id)
  select this, r.entity_id, r.old, r.new, r.direct, (
    select max(draft_record.log_id) from draft_record
    where draft_record.entity_id = r.entity_id
      and draft_record.new_version_id is not distinct from r.new
      and draft_record.old_version_id is distinct from r.new)
  from unnest(entities, old_versions, new_versions, asked) as r (entity_id, old, new, direct);
  insert into published (entity_id, version_id, record_id)
  select entity_id, new_version_id, id from publish_record where log_id = this
  order by entity_id
  on conflict (entity_id) do update
  set version_id = excluded.version_id, record_id = excluded.record_id;

  with recursive edge (child, parent, version) as (
    select record.entity_id, above.parent, above.version
    from publish_record record cross join lateral holders_in_public(record.entity_id) as above
    where record.log_id = this
    union
    select edge.parent, above.parent, above.version
    from edge cross join lateral holders_in_public(edge.parent) as above
  )
  select array_agg(edge.child), array_agg(edge.parent), array_agg(edge.version)
  into children, parents, shown from edge;
  if children is not null then
    with made as (
      insert into publish_record (log_id, entity_id, old_version_id, new_version_id, direct)
      select distinct this, up.entity_id, up.version_id, up.version_id, false
      from unnest(parents, shown) as up (entity_id, version_id)
      order by up.entity_id
      on conflict (log_id, entity_id) do nothing
      returning entity_id
    )
    select array_agg(made.entity_id) into touched from made;
    update published set record_id = (
      select id from publish_record where log_id = this and entity_id = published.entity_id)
    where published.entity_id = any(touched);
    insert into publish_side_effect (cause_id, effect_id)
    select pair.cause, pair.effect from (
      select (select id from publish_record where log_id = this and entity_id = edge.child) as cause,
             (select id from publish_record where log_id = this and entity_id = edge.parent) as effect
      from unnest(children, parents) as edge (child, parent)
    ) as pair
    where pair.cause is not null and pair.effect is not null
    on conflict do nothing;
  end if;
  return this;
end $$;


-- Makes the next version of each entity and points its draft there, in one change log. A row has
-- `entity_id`, `title`, `only_media`, `media` {path: id, or null to take away}, `container`, and
-- `children` [[entity, pin], ...] or null to keep them. contract: content_core §2.1, §2.9
create or replace function make_versions(
  library bigint, wanted jsonb, at timestamptz, who text
) returns table (entity_id bigint, version_id bigint, version_num integer, log bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
declare
  entities bigint[];
  versions bigint[];
  numbers integer[];
  this bigint;
begin
  -- So that two editors get two numbers, one after the other. What a new version is based on is
  -- what its editor saw: the live draft, or the newest of a deleted one.
  perform entity.id from entity
  where entity.id = any(array(
    select (r ->> 'entity_id')::bigint from jsonb_array_elements(wanted) as r))
  order by entity.id for no key update;
  -- From here on the newest version of each is the one made here.
  with made as (
    insert into version (uuid, entity_id, version_num, title, created, created_by)
    select gen_random_uuid(), r.entity_id, coalesce(newest.version_num, 0) + 1,
           coalesce(r.title, (
             select live.title from version live where live.id = (
               select draft.version_id from draft where draft.entity_id = r.entity_id)
           ), newest.title, ''), at, who
    from jsonb_to_recordset(wanted) as r (entity_id bigint, title text)
    left join lateral (
      select version.version_num, version.title from version
      where version.entity_id = r.entity_id order by version.version_num desc limit 1
    ) newest on true
    order by r.entity_id
    returning version.id, version.entity_id, version.version_num
  )
  select array_agg(made.entity_id order by made.id), array_agg(made.id order by made.id),
         array_agg(made.version_num order by made.id)
  into entities, versions, numbers from made;

  insert into version_media (version_id, path, media_id)
  select made.id, kept.path, kept.media_id
  from jsonb_to_recordset(wanted) as r (entity_id bigint, media jsonb, only_media boolean)
  cross join lateral (
    select version.id, version.version_num as num from version
    where version.entity_id = r.entity_id order by version.version_num desc limit 1) as made
  cross join lateral (
    select version_media.path, version_media.media_id from version_media
    where version_media.version_id = coalesce((
      select draft.version_id from draft where draft.entity_id = r.entity_id), (
      select older.id from version older
      where older.entity_id = r.entity_id and older.version_num < made.num
      order by older.version_num desc limit 1))
    offset 0) as kept
  where not r.only_media and made.num > 1 and not r.media ? kept.path
  union all
  select made.id, file.key, file.value::bigint
  from jsonb_to_recordset(wanted) as r (entity_id bigint, media jsonb)
  cross join lateral (
    select version.id, version.version_num as num from version
    where version.entity_id = r.entity_id order by version.version_num desc limit 1) as made
  cross join jsonb_each_text(r.media) as file
  where file.value is not null;

  if jsonb_path_exists(wanted, '$[*] ? (@.container == true)') then
    insert into child (version_id, order_num, entity_id, pinned_version_id)
    select made.id, kept.order_num, kept.entity_id, kept.pinned_version_id
    from jsonb_to_recordset(wanted) as r (entity_id bigint, container boolean, children jsonb)
    cross join lateral (
    select version.id, version.version_num as num from version
    where version.entity_id = r.entity_id order by version.version_num desc limit 1) as made
    cross join lateral (
      select child.order_num, child.entity_id, child.pinned_version_id from child
      where child.version_id = coalesce((
        select draft.version_id from draft where draft.entity_id = r.entity_id), (
        select older.id from version older
        where older.entity_id = r.entity_id and older.version_num < made.num
        order by older.version_num desc limit 1))
      offset 0) as kept
    where r.container and jsonb_typeof(r.children) is distinct from 'array' and made.num > 1
    union all
    select made.id, one.place - 1, (one.child ->> 0)::bigint, (one.child ->> 1)::bigint
    from jsonb_to_recordset(wanted) as r (entity_id bigint, container boolean, children jsonb)
    cross join lateral (
    select version.id, version.version_num as num from version
    where version.entity_id = r.entity_id order by version.version_num desc limit 1) as made
    cross join jsonb_array_elements(
      case when jsonb_typeof(r.children) = 'array' then r.children else '[]' end
    ) with ordinality as one (child, place)
    where r.container;
    insert into dependency (version_id, entity_id)
    select distinct child.version_id, child.entity_id from child
    where child.version_id = any(versions) and child.pinned_version_id is null;
  end if;

  select moved.log into this from move_drafts(library, entities, versions, at, who) as moved;
  return query select made.entity_id, made.id, made.num, this
  from unnest(entities, versions, numbers) as made (entity_id, id, num);
end $$;


-- What one change log of drafts means to others, as `events.py` tells it: 1 what happened to an
-- entity, 2 what it belongs to is different, 3 a collection is to be read. contract: libraries §7.2
create or replace function news_of_drafts(library bigint, this bigint)
returns table (what integer, id bigint, kind text, type text, code text, verb text, changes text[])
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
begin
  return query
  with record as materialized (
    select draft_record.id, entity_id, old_version_id as old, new_version_id as new,
           kind, type, code,
           old_version_id is null and exists (
             select from draft_record earlier
             where earlier.entity_id = draft_record.entity_id and earlier.log_id < this
           ) as restored
    from draft_record cross join lateral (
      select kind, type, code from entity where entity.id = entity_id offset 0) as about
    where log_id = this
  ), arranged as (
    select record.kind || 's' as belonging, old, new, (
      select title from version where version.id = old) <> (
      select title from version where version.id = new) as renamed
    from record
    where kind <> 'component' and new is not null and old is distinct from new and not restored
  ), concerned as (
    select child.entity_id, belonging
    from arranged cross join lateral (
      select entity_id, version_id from child
      where child.version_id = any(array[old, new]) offset 0) as child
    group by child.entity_id, belonging, new, renamed
    having renamed or count(distinct child.version_id) = 1
    union
    select entity_id, belonging from record, unnest(array['collections', 'tags']) as belonging
    where restored and kind = 'component' and exists (
      select from collection_member
      where collection_member.entity_id = record.entity_id
        and (select enabled from collection where collection.id = collection_id) offset 0)
  )
  select 1 as what, id, kind::text, type::text, code::text,
         case when old is null and new is not null then 'created'
              when new is null and old is not null then 'deleted'
              else 'updated' end as verb, cast(null as text[]) as changes
  from record
  union all
  select 2, concerned.entity_id, kind, type, code, '', array_agg(belonging)
  from concerned cross join lateral (
    select kind, type, code from entity where entity.id = concerned.entity_id offset 0) as about
  where (select version_id from draft where entity_id = concerned.entity_id) is not null
     or (select version_id from published where entity_id = concerned.entity_id) is not null
  group by concerned.entity_id, kind, type, code
  union all
  select 3, collection.id, '', '', collection.code, 'updated', null
  from collection
  where enabled and library_id = library and id = any(array(
    select distinct collection_id from record cross join lateral (
      select collection_id from collection_member
      where collection_member.entity_id = record.entity_id offset 0) as member
    where (old is null) <> (new is null)))
  order by what, id;
end $$;


-- What one publish means to others, likewise. contract: libraries §7.3
create or replace function news_of_publish(library bigint, this bigint)
returns table (what integer, id bigint, kind text, type text, code text, verb text, changes text[])
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
begin
  return query
  with record as materialized (
    select publish_record.id, entity_id, kind, type, code
    from publish_record cross join lateral (
      select kind, type, code from entity where entity.id = entity_id offset 0) as about
    where log_id = this
  )
  select 1 as what, id, kind::text, type::text, code::text, 'published' as verb,
         cast(null as text[]) as changes
  from record
  union all
  select 3, collection.id, '', '', collection.code, 'updated', null
  from collection
  where enabled and library_id = library and id = any(array(
    select distinct collection_id from record cross join lateral (
      select collection_id from collection_member
      where collection_member.entity_id = record.entity_id offset 0) as member))
  order by what, id;
end $$;


-- All differences of a library, in the order of the entities.
create or replace function changed(library bigint)
returns table (entity_id bigint, published bigint, draft bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
begin
  return query select * from differences(library) as d order by d.entity_id;
end $$;


-- Those of a library's entities that were asked for (`direct`), and below them everything that
-- differs; what does not differ is walked through. contract: content_core §2.5
create or replace function changed_below(library bigint, entities bigint[])
returns table (entity_id bigint, published bigint, draft bigint, direct boolean)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
begin
  return query
  with recursive below (entity_id, version_id) as (
    select draft.entity_id, draft.version_id from draft
    where draft.entity_id = any(entities)
      and (select library_id from entity where entity.id = draft.entity_id) = library
    union
    select held.entity_id, held.version_id from below cross join lateral (
      select dependency.entity_id, (
        select draft.version_id from draft where draft.entity_id = dependency.entity_id
      ) as version_id
      from dependency where dependency.version_id = below.version_id offset 0) as held
  )
  select entity_id, published, draft, direct from (
    select below.entity_id, below.version_id as draft, (
             select published.version_id from published
             where published.entity_id = below.entity_id) as published,
           below.entity_id = any(entities) as direct
    from below offset 0) as pair
  where direct or draft is distinct from published
  order by entity_id;
end $$;


-- The files of live drafts, by the refs of their entities.
create or replace function files_of_drafts(library bigint, refs text[])
returns table (entity_ref text, path text, hash text)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
#variable_conflict use_column
begin
  return query
  select entity.entity_ref::text, file.path::text, file.hash::text
  from entity cross join lateral (
    select version_media.path, (
      select media.hash from media where media.id = version_media.media_id) as hash
    from version_media where version_media.version_id = (
      select draft.version_id from draft where draft.entity_id = entity.id) offset 0
  ) as file
  where entity.library_id = library
    and entity.entity_ref = any(refs);
end $$;


-- A new component with its first version, whose text is its only file. Returns no entity when its
-- name is taken, and nothing is written when the library is full. contract: content_core §2.1
create or replace function create_component(
  library bigint, named text, kind_of text, code_of text, alone boolean, title text,
  olx text, olx_type text, olx_hash text, olx_size bigint, most bigint,
  at timestamptz, who text
) returns table (is_full boolean, entity bigint, unique_id uuid, log bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off
set enable_mergejoin = off set enable_material = off set jit = off as $$
declare
  made bigint;
  unique_made uuid;
  stored bigint;
  this bigint;
  live bigint;
  notes bigint;
begin
  select coalesce(sum(items), 0), count(*) into live, notes
  from live_count where library_id = create_component.library;
  -- Far from the limit nobody waits for anybody: what is under way is less than this.
  if live >= most - 1000 then
    perform id from library where id = create_component.library for no key update;
    perform add_up_live(create_component.library);
    if (select coalesce(sum(items), 0) from live_count
        where library_id = create_component.library) >= most then
      return query select true, cast(null as bigint), cast(null as uuid), cast(null as bigint);
      return;
    end if;
  elsif notes >= 50 then
    perform id from library where id = create_component.library for no key update skip locked;
    if found then
      perform add_up_live(create_component.library);
    end if;
  end if;
  insert into entity (uuid, library_id, entity_ref, kind, type, code, can_stand_alone, created,
                      created_by)
  values (gen_random_uuid(), create_component.library, named, 'component', kind_of, code_of, alone,
          at, who)
  on conflict (library_id, entity_ref) do nothing
  returning id, uuid into made, unique_made;
  if made is not null then
    insert into media (library_id, media_type, hash, size, text, has_file, created, interest_at)
    values (create_component.library, olx_type, olx_hash, olx_size, olx, false, at, at)
    on conflict (library_id, media_type, hash)
    do update set text = coalesce(media.text, excluded.text),
                  interest_at = greatest(media.interest_at, excluded.interest_at)
    returning id into stored;
    -- What `make_versions` does, for what has no version yet and is held by nothing.
    with first as (
      insert into version (uuid, entity_id, version_num, title, created, created_by)
      values (gen_random_uuid(), made, 1, create_component.title, at, who) returning id
    ), file as (
      insert into version_media (version_id, path, media_id)
      select first.id, 'block.xml', stored from first
    ), change as (
      insert into draft_log (uuid, library_id, changed_at, changed_by)
      values (gen_random_uuid(), create_component.library, at, who) returning id
    ), record as (
      insert into draft_record (log_id, entity_id, old_version_id, new_version_id)
      select change.id, made, null, first.id from change, first
      returning id, log_id, new_version_id
    ), pointed as (
      insert into draft (entity_id, version_id, record_id)
      select made, record.new_version_id, record.id from record
    )
    select record.log_id into this from record;
    return query select false, made, unique_made, this;
  end if;
end $$;
