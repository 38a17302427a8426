"""Recipe to wired objects. `check` finds every mistake without torch; `wire` is the only file that knows all parts."""
