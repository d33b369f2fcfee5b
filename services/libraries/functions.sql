-- What is found by: one row of words for each live draft, kept by the database itself, so that no
-- way of changing a draft can forget it. Migrations install this file; a change of it needs a
-- migration that installs it again.


-- The words of an OLX text, without its tags.
create or replace function words_of(olx text) returns text
language sql immutable parallel safe as $$
  select left(
    regexp_replace(
      regexp_replace(olx, '<!--.*?-->|<(style|script)[ >].*?</\1>', ' ', 'g'),
      '<[^>]*>|&[a-z#0-9]+;|\]\]>', ' ', 'g'),
    100000)
$$;


-- Writes the rows of drafts as they are now.
create or replace function keep_findable(entities bigint[]) returns void
language sql as $$
  delete from findable using draft
  where findable.entity_id = any(entities) and draft.entity_id = findable.entity_id
    and draft.version_id is null;
  insert into findable (entity_id, library_id, title, tags, body)
  select entity.id, entity.library_id, version.title,
         coalesce((select string_agg(tag.name, ' ' order by tag.name) from tag
                   where tag.entity_id = entity.id), ''),
         coalesce(words_of(media.text), '')
  from draft
  join entity on entity.id = draft.entity_id
  join version on version.id = draft.version_id
  left join version_media
    on version_media.version_id = draft.version_id and version_media.path = 'block.xml'
  left join media on media.id = version_media.media_id
  where draft.entity_id = any(entities)
  order by entity.id
  on conflict (entity_id) do update set
    title = excluded.title, tags = excluded.tags, body = excluded.body
$$;


create or replace function draft_was_made() returns trigger
language plpgsql as $$
begin
  perform keep_findable(array(select entity_id from moved));
  return null;
end $$;


create or replace function draft_was_moved() returns trigger
language plpgsql as $$
begin
  perform keep_findable(array(
    select moved.entity_id from moved join before using (entity_id)
    where moved.version_id is distinct from before.version_id));
  return null;
end $$;
