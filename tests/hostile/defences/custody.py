"""Cores that the host keeps."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "keeping: a store that others may enter": (
        [("store.py", "if found.st_uid != 0 or found.st_mode & 0o077:", "if False:")],
        "others_could_change and (mode or owner)",
    ),
    "keeping: a loop pushes out the cores of others": (
        [("room.py", "if self.left.get(self.group) and self.taken[self.group] > share:", "if False:")],
        "crashes_in_a_loop",
    ),
    "keeping: what nobody writes any more counts": (
        [("store.py", "if entry.whole or _is_being_written(group, entry) or _adopt(group, entry):", "if True:")],
        "while_the_kernel_dumps_leaves_nothing",
    ),
    "keeping: any number of long names": (
        [("build_ids.py", "                if room < 0:", "                if False:")],
        "names_of_files_of_one_container",
    ),
    "keeping: a process waits for each crash": (
        [("custody.py", "turn = self.store.turn(store.WAITING)", "turn = posix.dup(self.file)")],
        "threads_that_stay",
    ),
    "keeping: bytes of the compressed core count for those that the sender reads": (
        [("sender.py", 'if line.startswith(b"wchar:"):', "if False:")],
        "sender_that_reads_on",
    ),
    "keeping: no second chance": (
        [("deliver.py", "if failed is not None and delivery.begins_again(", "if False and delivery.begins_again(")],
        "second_chance",
    ),
    "keeping: a core that was taken stays": (
        [("delivery.py", "        if self.custody is not None:\n            self.custody.drop()", "        pass")],
        "delegate_takes_does_not_stay",
    ),
    "keeping: a delegate that has read a part has taken it": (
        [("delivery.py", "if self.custody is None or (result.complete", "if True or (result.complete")],
        "delegate_loses or counts_as_taken",
    ),
    "keeping: a delegate that may write no more has taken it": (
        [("delivery.py", "if self.custody is None or (result.complete", "if True or (result.complete")],
        "hard_limit_of_the_size",
    ),
    "keeping: 75 gives no second chance": (
        [("deliver.py", "if failed is not None and delivery.begins_again(", "if False and delivery.begins_again(")],
        "asks_again_in_vain",
    ),
    "custody: a core may take what is free, and not what it has claimed": (
        [("custody.py", "        self.room = need\n", "        self.room = 1 << 40\n")],
        "never_in_memory",
    ),
    "custody: a first core has room whatever it pushes out": (
        [("room.py", "        elif self.need > max(share, self.bound // FIRST):", "        elif False:")],
        "pretends_to_have",
    ),
    "custody: cores go where others have filled the disk": (
        [("room.py", "None if left >= need and freed >= need else ", "")],
        "others_fill",
    ),
    "custody: whoever finishes a core waits for its process": (
        [("custody.py", "poll.poll(PATIENCE * 1000)", "poll.poll()")],
        "stays_keeps_none",
    ),
    "custody: what is compressed has no bound": (
        [
            (
                "finishing.py",
                "min(room_left(kept_in, configuration) - SPARE, posix.fstat(file).st_blocks * store.BLOCK)",
                "1 << 40",
            )
        ],
        "compressed_of_it",
    ),
    "keeping: the delegate starts while the kernel dumps": (
        [("deliver.py", "            if destination.secured:\n", "            if False:\n")],
        "nothing_else or stopped_during",
    ),
    "keeping: the process waits for its delegate": (
        [("delivery.py", "if self.configuration.release_kept and ", "if False and ")],
        "come_after_the_process",
    ),
    "keeping: a delivery holds the slot of a process that has ended": (
        [("delivery.py", "self.slot.give_back()", "pass")],
        "hold_no_slot",
    ),
    "keeping: a helper that is killed takes its core along": (
        [("delivery.py", "        else:\n            self.announce(kept)\n", "        else:\n")],
        "during_the_delivery_loses_nothing",
    ),
    "keeping: what is under way has no share": (
        [("room.py", "share = share_of(group, entries, free, left, bound, begun)", "share = bound")],
        "under_way_leave_room",
    ),
    "keeping: the helper itself reads the environment": (
        [("process.py", "apart.read(lambda pipe: _pass_on(file, pipe), limit)", "(_text_of(file), 0)")],
        "memory_that_is_kept_locked",
    ),
    "keeping: a core that is sent for ever ends the run": (
        [("sender.py", 'return Problem(f"it was ended after {now - began:.0f} s (', 'return Away(f"(')],
        "huge_core_of_nothing",
    ),
    "keeping: the core is written for as long as the kernel dumps": (
        [("custody.py", "poll.poll(max(0.0, deadline - time.monotonic()) * 1000)", "poll.poll()")],
        "terabytes_that_were_never_used",
    ),
    "keeping: no bound": (
        [("room.py", "bound - sum(weight(entry, bound) for entry in entries)", "bound")],
        "hundreds_of",
    ),
    "keeping: the sender is root": (
        [("sender.py", "os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)", "pass")],
        "sent_by_a_user",
    ),
    "keeping: the sender is not told that a core was cut off": (
        [("sender.py", '"1" if self.core["truncated"] else "0"', '"0"')],
        "sent_under_a_name",
    ),
}
