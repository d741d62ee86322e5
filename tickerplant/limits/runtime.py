"""Bounds of the plant's process: event loop, tick log, raw capture, companions, what an operator sees."""

# --- daemon ---------------------------------------------------------------------------------------
PUBLISH_SEND_BUFFER_BYTES = 4 * 1024 * 1024
"""Asked of the kernel per socket; what does not fit is lost (EAGAIN), counted and left to repair."""
STATE_FILE_MAX_BYTES = 4_096
"""A larger session file is not ours: it is not read, and the clock alone gives the session."""
WATCHED_DATAGRAMS_MAX = 1_024
"""Datagrams of our own status group looked at per second for a newer plant; the rest waits in the kernel."""
TIMER_WAIT_MAX_NS = 1_000_000_000
"""The loop timer fires at least so often, whatever the clock did."""
CLOCK_SLEW_DIVISOR = 20
"""How fast a clock that is ahead of the wall clock gives way: 1/20, i.e. 50 ms per second."""
LOOK_UPS_AT_ONCE = 4
"""REST look-ups of single markets and events under way; further ones wait."""
LOOK_UPS_PER_BATCH = 100
"""Look-ups answered together; a missing one among them holds up the others of its batch for some seconds."""
RECORDS_PER_INPUT = 200
"""Markets handed to the feed in one go; the loop runs other work between two."""
LOOK_UPS_WAITING_MAX = 50_000
"""Look-ups that wait; at the bound further ones are dropped, counted, and all markets are read anew."""
REFRESH_INTERVAL_S = 600
"""How often all chosen markets are read anew, in case a lifecycle frame was missed unseen."""
REFRESH_SPACING_S = 10
"""Least time between two readings of all markets, whatever asks for them."""

# --- tick log -------------------------------------------------------------------------------------
LOG_READ_BYTES = 1024 * 1024
"""Bytes of a segment that a reader takes in one go; the rest waits for its next call."""
LOG_SEGMENT_OVERRUN_BYTES = 256 * 1024**2
"""A segment that cannot be followed by another grows by so much beyond its size; then the log goes off."""
LOG_ROTATION_RETRY_BYTES = 1024 * 1024
"""A rotation that was not possible is tried again after so many further bytes."""
LOG_SEGMENTS_MAX = 10_000
"""Segment files kept; more are deleted, the oldest first, like bytes beyond the retention."""
LOG_ALARM_PERCENT = 80
"""Share of the log's largest size from which on it alarms; a full log that went off resumes below it."""
LOG_CONSUMERS_MAX = 64
"""Position files looked at; with more of them nothing is deleted."""
LOG_POSITION_MAX_BYTES = 512
"""A larger position file is not one of ours; while it is there nothing is deleted."""
LOG_OWNER_BYTES = 256
"""What the owner writes about itself into the lock file, always so long, so that it needs no new space on disk."""
LOG_WATCH_INTERVAL_S = 1
"""How often upkeep looks whether the segment being written is still there."""
LOG_SURVEY_INTERVAL_S = 10
"""How often upkeep lists the folder: total size and retention. Also after each rotation, and while the log is off."""
LOG_RESUME_WAIT_S = 5
"""A log that went off may resume after so long at the earliest; doubled each time it goes off again soon."""
LOG_RESUME_WAIT_MAX_S = 300
LOG_STABLE_S = 600
"""A log that stayed on for so long starts with the short wait anew."""
LOG_REMINDER_S = 60
"""A tick log that is off, nearly full or in trouble is logged again so often."""
LOG_CLOSE_TIMEOUT_S = 5
"""How long closing waits for the last fsync; after that it is left to the kernel."""
LOG_FOLDER_SETTLE_NS = 100_000_000
"""A folder that changed so recently is listed again, because its time stamp is too coarse to tell two changes apart."""
LOG_FAULTS_SHOWN = 100
"""Faults that `log verify` names each; the others are counted."""
LOG_FOLLOW_INTERVAL_S = 0.02
"""How long `log cat --follow` waits at the end of the log before it looks again."""

# --- raw capture ----------------------------------------------------------------------------------
CAPTURE_RECORD_MAX_BYTES = 64 * 1024 * 1024
"""One record of a capture; what a reader finds beyond it is damage. A batch of frames is split before it gets there."""
CAPTURE_BATCH_BYTES = 32 * 1024 * 1024
"""Inputs that would make a larger record are written as several."""
CAPTURE_INPUTS_PER_RECORD = 1_024
"""Inputs that wait to be written; at the bound they are, though no batch has ended."""
CAPTURE_READ_BYTES = 1024 * 1024
"""Bytes of a segment that are read, or compressed, in one go."""
CAPTURE_ROTATION_RETRY_BYTES = 1024 * 1024
"""A rotation that was not possible is tried again after so many further bytes; at twice its size the capture ends."""
CAPTURE_SEGMENTS_MAX = 100_000
"""Segment files kept; more are deleted, the oldest first, like bytes beyond the bound."""
CAPTURE_UPKEEP_INTERVAL_S = 1
"""How often the capture is synced and looked after."""
CAPTURE_SURVEY_INTERVAL_S = 10
"""How often the folder is listed for retention and compression. Also after each rotation."""
CAPTURE_CLOSE_TIMEOUT_S = 5
"""How long closing waits for the last sync; after that it is left to the kernel."""
CAPTURE_FAULTS_SHOWN = 100
"""Faults of a capture that are named each; the others are counted."""

# --- companions -----------------------------------------------------------------------------------
COMPANION_BACKOFF_BASE_S = 0.25
"""Wait before a companion process that ended is started again; doubled each time."""
COMPANION_BACKOFF_CAP_S = 30.0
"""The longest wait; it is started again and again, so seldom, without end."""
COMPANION_LOOK_S = 0.25
"""How often to look whether it has ended, where the system has no descriptor left to tell."""
COMPANION_STABLE_S = 60.0
"""One that ran for so long starts with the short wait anew."""
COMPANION_TELL_S = 1.0
"""How often a companion tells systemd how it is, and looks whether its keys changed."""
COMPANION_STOP_TIMEOUT_S = 10.0
"""One that was asked to end and has not by then is killed."""

# --- operator's shell -----------------------------------------------------------------------------
CONFIG_FILE_MAX_BYTES = 1024 * 1024
"""A larger configuration file is refused."""
LOG_REPEAT_NS = 1_000_000_000
"""One warning per event name in this time; the others are counted in the next one's `suppressed`."""
LOG_EVENT_NAMES_MAX = 512
"""Event names whose rate is limited each on its own; further names share one limit."""
LOG_TEXT_MAX_CHARACTERS = 16_384
"""A longer text is cut in the log, and says so."""
LOG_VALUE_DEPTH_MAX = 6
"""Nesting of a logged value that is searched for secrets; what lies deeper is not logged."""
METRIC_SERIES_MAX = 2_000
"""Label combinations of one metric in one scrape; further ones are left out and counted."""
METRICS_BACKLOG = 16
METRICS_KEEPALIVE_S = 75
HEARD_DATAGRAMS_MAX = 4_096
"""Datagrams read while listening on the groups before the start; the verdict is then made from these."""
HEARD_SENDERS_MAX = 256
"""Distinct (group, sender, session) of those that are remembered; further ones are ignored."""
CLOCK_OFFSET_WARN_NS = 1_000_000_000
"""Difference between our clock and the exchange's beyond which `doctor` warns."""
NETWORK_PROBE_TIMEOUT_S = 5
"""One check of `doctor` that waits for the network; then it fails."""
OPEN_FILES_WANTED = 1_024
"""Open files the plant may need; `doctor` warns below it."""
STATE_FREE_WANTED_BYTES = 1024**3
"""Free space in the state directory below which `doctor` warns."""
STATE_FREE_MIN_BYTES = 64 * 1024**2
"""Free space in the state directory below which `doctor` fails."""
