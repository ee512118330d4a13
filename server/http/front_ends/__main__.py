"""`python -m server.http.front_ends --link-fd N --listen-fd M`: one front end, started by `processes`."""

from server.http.front_ends.front_end import main

main()
