"""libraries owns authored content outside any course, in libraries of components and containers.

An *entity* is anything with versions: a component, or a container of others. Its *draft* points
at the version being edited, its *published* at the one readers see; either may be empty. Edits
and publishes are kept in logs, one record per entity. *Media* are texts and files by content.
"""
