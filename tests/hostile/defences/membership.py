"""Whose the files are that a process sees, and whose name is told."""

from __future__ import annotations

from hostile.defences.kinds import Breaks

BREAKS: Breaks = {
    "15 names are written as they are": (
        [
            (
                "journal.py",
                'return "".join(chr(byte) if 32',
                'return text.decode("latin-1")\n    return "".join(chr(byte) if 32',
            )
        ],
        "attack_15",
    ),
    "15 a path may push the rest out of the line": (
        [("journal.py", 'escaped if len(escaped) <= longest else cut(escaped, longest) + "..."', "escaped")],
        "attack_15_a_path",
    ),
    "15 a user may name a container": (
        [("runtime.py", '"" if maker == 0 else', '"" if True else')],
        "attack_15_a_user",
    ),
    "sandboxes get the variables of the engine": (
        [("delivery.py", "if process.confined or not process.record.shared or self.plan.root", "if self.plan.root")],
        "a_sandbox_in_the_container_gets_no",
    ),
    "the process chooses before the engine": (
        [("joining.py", "{**defaults, **variables, **facts}", "{**variables, **defaults, **facts}")],
        "a_destination_that_the_process_has_chosen",
    ),
    "15 a user may claim a record": (
        [
            ("record.py", "runtime.maker_of(*group[1:]) != 0", "False"),
            ("record.py", "if _is_of(int(_read(pid_file)), process, group, record):", "if True:"),
        ],
        "attack_15_a_user_of_the_host_claims",
    ),
    "15 the first process of a record is not asked": (
        [
            ("record.py", "runtime.maker_of(*group[1:]) != 0", "False"),
            ("record.py", "if runtime.outermost_group(first.cgroups) != group:", "if False:"),
            ("record.py", "return first.mount_namespace", "return True or first.mount_namespace"),
            ("record.py", "return namespace is not None and", "return True or"),
        ],
        "attack_15_a_user_of_the_host_claims",
    ),
    "20 the mount namespace is not asked for": (
        [("deliver.py", "        membership.check(process)\n", "        pass\n")],
        "attack_20",
    ),
    "20 who is at home there is not asked": (
        [("strangers.py", "    if find(process", "    if False and find(process")],
        "attack_20_the_first_process_of_an_agent_is_no_proof",
    ),
    "20 the program is not asked for": (
        [("foreign_files.py", '    number = mount_table.mount_of_link(task, "exe")\n', "    return\n")],
        "attack_20_an_agent_in_the_files_of_a_container or attack_20 and itself",
    ),
    "20 the pid namespace is not asked for": (
        [("membership.py", 'if first.pid_namespace != process.inode("pid"):', "if False:")],
        "attack_20_a_process_of_the_host_that_was_moved",
    ),
    "20 the control group is not asked for": (
        [("membership.py", "            _check_group(process, first)\n", "            pass\n")],
        "attack_20_a_process",
    ),
    "20 the user namespace of the mounts is not asked for": (
        [("membership.py", "        _check_owner(process)\n", "")],
        "attack_20_root",
    ),
    "20 the root directory is not asked for": (
        [
            (
                "foreign_files.py",
                "    process, path = view.process, view.path\n",
                "    return\n    process, path = view.process, view.path\n",
            ),
            ("container.py", "if mount != mount_table.mount_of(root, proc_self) and", "if False and"),
        ],
        "attack_20",
    ),
    "20 other networks are not asked": (
        [("membership.py", "process.inode(kind) != first.namespace(kind) for kind", "False for kind")],
        "attack_20_an_intruder_that_has_kept",
    ),
    "20 a process that is ending has no control groups": (
        [("runtime.py", "common = first.keys() & second.keys()", "common = {*list(first)[:1]} & {*list(second)[:1]}")],
        "does_not_come_to_its_end",
    ),
    "20 a user namespace is not asked for its user": (
        [
            (
                "membership.py",
                "    if not made or (process.uid == 0 and",
                "    if False and (process.uid == 0 and",
            )
        ],
        "attack_20_no_program_of_a_user and without",
    ),
    "20 the maker of a user namespace is at home there, even root": (
        [("membership.py", "    if not made or (process.uid == 0 and", "    if not made or (False and")],
        "attack_20_root_of_the_host_in_a_user_namespace_that_root",
    ),
    "20 whoever may write in a root directory is trusted": (
        [("joining.py", "root = procfs.path_of(process.root)", 'root = b"/"')],
        "attack_20_a_user_of_a_container",
    ),
    "20 a slice joins nobody, whatever other hierarchies tell": (
        [("runtime.py", "        if group is None and theirs.endswith(SLICE) and", "        if False and")],
        "a_slice_in_one_hierarchy",
    ),
    "20 too many processes end the search": (
        [
            (
                "first_process.py",
                "runtime.named_group(process.cgroups) or runtime.group_of_unit(process.cgroups)",
                "process.cgroups[0]",
            ),
            (
                "first_process.py",
                "    except Refused:\n        found = []",
                "    except ZeroDivisionError:\n        found = []",
            ),
        ],
        "the_control_groups_of_others",
    ),
    "20 the root directory is asked for after more capabilities only": (
        [
            (
                "membership.py",
                "        foreign_files.check_root(view, joined)\n",
                "        if joined:\n            foreign_files.check_root(view, joined)\n",
            )
        ],
        "attack_20_chroot_without",
    ),
    "20 the layers of an overlay are not looked at": (
        [("foreign_files.py", ", *map(host.place_of_layer, mount_table.layers_of(overlay))", "")],
        "attack_20_root_of_the_host_in_what",
    ),
    "20 other mounts than those of the first process need no proof": (
        [("membership.py", "        if joined or not view.own:", "        if joined:")],
        "attack_20_a_process_of_the_host_with_the_rights and ended",
    ),
    "20 what engines have mounted on the host is not looked at": (
        [("foreign_files.py", "        if _is_of_an_engine(place, home, view.host()):", "        if False:")],
        "attack_20_the_files_of_a_container_that_hides",
    ),
    "20 a root directory that is no mount is nobody's": (
        [
            (
                "foreign_files.py",
                "        return self.process.visits.mounts_of_namespace(namespace, *self.numbers())",
                "        return mount_table.mounts_of(self.process.task, *self.numbers())",
            ),
            (
                "foreign_files.py",
                "    if number not in table:\n",
                "    if number not in table:\n        return\n    if False:\n",
            ),
        ],
        "attack_20_root_of_the_host_with_mounts_of_its_own",
    ),
    "20 the other namespaces are not asked for": (
        [("membership.py", "            _check_eldest(process, member)\n", "            pass\n")],
        "attack_20_a_process_of_the_host_that_has_kept",
    ),
    "20 nobody in a user namespace has files of root": (
        [
            ("strangers.py", "        if namespaces.maker_of(opened[2]) == 0:\n", "        if False:\n"),
            ("strangers.py", 'return bool(namespaces.mapped(directory, "uid_map", users))', "return False"),
        ],
        "root_directory_to_that_of_a_container",
    ),
    "20 whatever a user mounts is his": (
        [("strangers.py", "if not _may_own(directory, {0, view.process.uid}):", "if False:")],
        "attack_20_a_user_of_the_host_claims_a_directory",
    ),
    "20 the first of a pid namespace is the first of a container": (
        [("first_process.py", "        if _may_be_another(init, process, group):", "        if False:")],
        "attack_20_a_pid_namespace_of_its_own",
    ),
    "20 the control group of a service tells its root directory": (
        [
            (
                "foreign_files.py",
                "        if self.first is None or self.process.shows_no_container():",
                "        if self.first is None:",
            )
        ],
        "attack_20_a_service_of_the_host",
    ),
    "20 a layer is not what its link leads to": (
        [("mount_table.py", "            target = posix.readlink(path)\n", "            raise OSError\n")],
        "attack_20_a_layer_of_an_image",
    ),
    "20 who is not at home is no stranger to the host": (
        [("strangers.py", "            strange = host and (", "            strange = False and (")],
        "attack_20_root_of_the_host_in_a_sandbox",
    ),
    "20 the sandboxes of users are containers in mounts of the host": (
        [("strangers.py", "and not (hosts and _is_of_user(member))", "")],
        "attack_20_others and user",
    ),
    "20 a monitor is its container": (
        [("runtime.py", " and engine not in MONITORS", "")],
        "attack_20_others and monitor",
    ),
    "20 the user namespace alone tells whose a sandbox is": (
        [("strangers.py", "        return namespaces.owner_of(opened[1]) != host", "        return True")],
        "attack_20_others and become",
    ),
    "20 a name on a control group is anybody's": (
        [("strangers.py", "not runtime.maker_of(*group[1:])", "False")],
        "attack_20_others and root",
    ),
    "20 what a user has mounted is read": (
        [("mount_table.py", 'if b" - fuse" in line and', "if False and")],
        "attack_20_a_user_of_the_host_makes",
    ),
    "20 what a user has mounted is read where an engine may have mounted it": (
        [("mount_table.py", 'return mount.kind.startswith(b"fuse") and', "return mount.kind not in OVERLAYS and")],
        "attack_20_a_user_makes_the_list_of_the_host",
    ),
    "20 a list that is cut off tells no root directory": (
        [
            (
                "mount_table.py",
                "    # The last line may have been cut off in its mount point.\n",
                '    if len(text) == procfs.MOUNTINFO_LIMIT:\n        raise Refused("too long")\n',
            )
        ],
        "attack_20_a_user_makes_the_list_of_a_service",
    ),
    "20 mounts are looked for in the first ones only": (
        [("mount_table.py", "LONGEST_LIST = 1 << 26", "LONGEST_LIST = 1 << 22")],
        "attack_20_a_user_makes_the_list_of_an_agent",
    ),
    "20 who has no number is our user": ([("program.py", " - {OVERFLOW_UID}", "")], "look_alike"),
    "24 a slice is a control group like any other": (
        [("runtime.py", 'if group[1] != b"/" and not group[1].endswith(SLICE)]', 'if group[1] != b"/"][:1]')],
        "attack_24_a_filter_of_its_own_where",
    ),
    "24 filters are compared with a constant": (
        [
            (
                "membership.py",
                "process.confined = process.seccomp_filters > min(member.filters for member in members)",
                "pass",
            )
        ],
        "attack_24 or attack_19_a_process",
    ),
    "24 the container around a sandbox is not asked": (
        [("first_process.py", "                others.append(eldest)\n", "                pass\n")],
        "attack_24_a_filter",
    ),
}
