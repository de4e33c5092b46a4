"""The page: a race as a film, in a browser, from a server on this machine or from one file."""
