"""Bounds of store, archive and audit."""

# --- store ----------------------------------------------------------------------------------------
ROW_CLOCK_DIFFERENCE_MAX_NS = 24 * 3_600 * 1_000_000_000
"""Exchange time of a live trade so far from its receive time is none: the row takes the receive time."""
QUESTDB_REFUSED_PER_BATCH_MAX = 100
"""Rows that the server refuses one by one in a batch; with more of them it is not the rows' fault: the store waits."""
QUESTDB_CONVERT_ROWS = 2_048
"""Rows of a table that wait as they came; then they become columns, which take a tenth of the memory."""
QUESTDB_BEHIND_BATCH_TIMES = 10
"""While the store catches up, rows wait so many times `store.batch_ms` for a batch to fill."""
QUESTDB_REQUEST_TIMEOUT_S = 30.0
"""One SQL statement of the store or of `tickerplant schema`; then the server counts as unavailable."""
QUESTDB_EXPORT_TIMEOUT_S = 600.0
"""Without a byte of an export, or until a table has applied what it was sent; then archiving ends with exit code 75."""
QUESTDB_CONVERT_TIMEOUT_S = 600.0
"""Until the server has turned a day into Parquet; then archiving ends with exit code 75."""
RESTORE_BATCH_ROWS = 50_000
"""Rows sent to QuestDB in one request when a day is restored."""
QUESTDB_KEPT_CONNECTIONS = 2
"""Idle connections that one who asks QuestDB keeps; further ones are closed after their answer."""
SQL_SMALL_ROWS = 250
"""Rows of an answer that QuestDB gives in one request; the rest of a larger one is asked for in another."""
QUESTDB_ANSWER_MAX_BYTES = 64 * 1024**2
"""A longer answer to such a statement is cut, and so refused."""
SECRET_MAX_BYTES = 4_096
"""A larger password file is refused."""
QUESTDB_FETCH_TIMEOUT_S = 600
"""Fetching the server, or a Java for it; then it has failed."""
QUESTDB_START_TIMEOUT_S = 120
"""Until a server that was started answers; then it is ended."""
QUESTDB_START_ATTEMPTS = 3
"""Starts of a server, on other ports each time if they were free ones; then it has failed."""
QUESTDB_STOP_TIMEOUT_S = 20
"""A server that has not ended so long after SIGTERM is killed."""
STORE_READ_BYTES = 256 * 1024
"""Of the log, that the store takes in one go; the rest waits for the next turn."""
STORE_TAIL_S = 0.005
"""How long the store waits at the end of the log before it looks again."""
STORE_RETRY_S = 1.0
STORE_RETRY_MAX_S = 30.0
"""Database or disk cannot take rows: tried again after so long, twice as long each time, at most the second."""
STORE_BOOKS_READ_BYTES_MAX = 1024**3
"""Log between recovery's checkpoint and the store's place, read to know the books; beyond it they are stored whole only
after they were published anew."""
STORE_BOOK_UPDATES = 2_048
"""Changes of levels that wait until they go into the books together; then they do."""
STORE_STOP_TIMEOUT_S = 3.0
"""How long the store goes on with the rest of the log when it is told to stop; what remains is for its next start."""
STORE_UPKEEP_S = 5.0
"""How often it is looked for work that can wait, such as merging files, when there was none."""
DEAD_LETTERS_MAX_BYTES = 64 * 1024 * 1024
"""Of rows that cannot be stored, kept with the reason; further ones are counted and dropped."""
SQL_SHOWN_ROWS = 1_000
"""Rows of an answer that are shown as a table unless told otherwise; the other formats have all."""
ARCHIVE_FETCH_MAX_BYTES = 8 * 1024**3
"""Of the archive, fetched for the questions of one history; a question that needs more is refused."""
SQL_BATCH_ROWS = 65_536
"""Rows of an answer that are held at a time where it is written as it comes."""
SQL_CSV_BLOCK_BYTES = 8 * 1024 * 1024
"""Of an answer of QuestDB, that become rows at a time; one row must fit."""
SQL_LISTING_ATTEMPTS = 3
"""A question whose files were merged and removed under it is asked again so often in all; then it has failed."""
BOOK_LATE_MAX_NS = 3_600 * 1_000_000_000
"""Rows read so much later than the exchange says that they happened are not found by the book at an instant."""
BENCH_STORE_TIMEOUT_S = 300
"""Until the store under measurement has stored everything, or ended; then the measurement has failed."""
PARQUET_ROW_GROUP_ROWS = 131_072
"""Rows of a table that wait in memory for their row group; then it is written."""
PARQUET_CONVERT_ROWS = 4_096
"""Rows of a table that wait as they came; then they become columns, which take a tenth of the memory."""
PARQUET_DAYS_PER_CLOSING = 64
"""Days of one table in one closing, a file each; with more of them it is closed at once, and the next begins."""
PARQUET_MERGE_COUNT = 32
"""Closings that follow each other, of one level, that are merged into one of the next."""
PARQUET_LEVEL_MAX = 2
"""Closings of this level are not merged again: 1,024 of the first make one."""
PARQUET_SUPERSEDED_KEEP_S = 60
"""How long merged closings stay, for queries that began before the merge."""
PARQUET_REJECTED_MAX = 1_000
"""Rows in one take that no column can hold, handed back one by one; further ones are only counted."""

# --- audit ----------------------------------------------------------------------------------------
AUDIT_ROW_BLOCK_SEQS = 1_024
"""Messages whose stored rows are tallied together, and looked at row by row if the tally differs from the log's."""
AUDIT_ROW_BLOCKS_SHOWN = 64
"""Such blocks that are looked at row by row; further ones are named as a whole."""
AUDIT_FINDINGS_KEPT = 1_000
"""Findings that an audit lists one by one; further ones are only counted."""
AUDIT_STALE_TOLD_WITHIN_NS = 60_000_000_000
"""A hole upstream waits for the pace before it is told of each book; later than this the audit calls it untold."""
ARCHIVE_CHUNK_BYTES = 4 * 1024 * 1024
"""Of an object or an answer, read in one go."""
ARCHIVE_SLICE_ROWS = 500_000
"""Rows that QuestDB exports at a time, more if they have one time; two such files may lie in the work folder."""
ARCHIVE_REQUEST_TIMEOUT_S = 60
ARCHIVE_REQUEST_RETRIES = 5
"""One request to the object store, and how often it is made again; then archiving ends with exit code 75."""
ARCHIVE_ATTEMPTS = 3
"""Times that a step of archiving one part is begun in one run, when what it made is damaged; then it fails."""
ARCHIVE_LATE_NS = 5_000_000_000
"""How long after midnight (UTC) what was received before it may still be sent and stored."""
MANIFEST_MAX_BYTES = 16 * 1024 * 1024
"""A larger manifest is refused."""
