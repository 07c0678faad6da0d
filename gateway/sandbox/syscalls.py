"""Which system calls a profile may never keep, and which it must."""

from __future__ import annotations

# With what is harmless this covers every name in the tables of firejail 0.9.72.
_DANGEROUS = {
    "changes mounts or the root": """mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig
        fsmount fspick mount_setattr""",
    "makes or enters namespaces": "unshare setns",
    "reads or writes other processes": """ptrace process_vm_readv process_vm_writev process_madvise
        process_mrelease pidfd_getfd kcmp migrate_pages move_pages""",
    "loads code into the kernel": """bpf init_module finit_module delete_module create_module kexec_load
        kexec_file_load""",
    "has often broken the kernel": """userfaultfd perf_event_open io_uring_setup io_uring_enter
        io_uring_register vmsplice modify_ldt remap_file_pages uselib memfd_secret""",
    "reaches the kernel's keyrings": "keyctl add_key request_key",
    "opens files past their paths": """open_by_handle_at name_to_handle_at fanotify_init fanotify_mark
        lookup_dcookie""",
    "makes device nodes": "mknod mknodat",
    "turns protections off": "personality seccomp capset",
    "administers the host": """quotactl quotactl_fd acct swapon swapoff reboot sethostname setdomainname iopl
        ioperm syslog settimeofday clock_settime clock_adjtime adjtimex vhangup nfsservctl sysfs
        ustat _sysctl""",
    "is obsolete": """get_kernel_syms query_module getpmsg putpmsg afs_syscall tuxcall security vserver
        epoll_ctl_old epoll_wait_old""",
}
WHY_NOT = {name: why for why, names in _DANGEROUS.items() for name in names.split()}
"""Why a system call may not be kept, by name."""

ESSENTIAL = frozenset({"execve", "read", "write", "mmap", "exit_group", "futex"})
"""What no kernel runs without."""

NUMBERED = frozenset({"$441", "$444", "$445", "$446", "$449", "$451", "$452", "$462"})
"""The harmless calls that firejail 0.9.72 has no name for: epoll_pwait2, Landlock's three, futex_waitv,
cachestat, fchmodat2 and mseal. Newer than 2019, so their numbers are the same on every architecture."""
