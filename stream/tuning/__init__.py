"""Finding a policy for a recorded stream: thousands are tried in one pass, on one part of the streams, and judged on
the other.

    space     which policies and settings are tried           `read_space`, `default_space`
    ranges    the values of one setting
    split     which streams are searched on                   `split_streams`
    settings  how to search and how to choose                 `TuneSettings`
    sampling  what to try next
    study     the search                                      `Study`
    trial     one policy and its figures                      `Trial`, `Figures`
    journal   where it is kept                                `SqliteJournal`, `open_study`
    fingerprint, by which a study is known again
    choice    what to deploy                                  `judge`
    results   the files it leaves behind                      `write_results`

Nothing is imported here: the command line asks for the settings, and need not wait for the rest.
"""
