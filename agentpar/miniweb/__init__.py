"""A small web that ships: real pages, a real server, a real search index, on loopback."""
