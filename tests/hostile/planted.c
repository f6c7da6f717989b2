/*
 * What a container plants where a program of the host would look: as the program interpreter that the host's Python wants, and
 * as a shared library of the host. Whoever loads it leaves a mark. It needs no library of its own.
 */
static long call(long number, long a, long b, long c, long d)
{
	long result;
	register long fourth __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
	return result;
}

__attribute__((constructor)) static void leave_mark(void)
{
	/* openat(AT_FDCWD, ..., O_CREAT | O_WRONLY, 0666) */
	call(257, -100, (long)"/out/planted", 0101, 0666);
}

void _start(void)
{
	leave_mark();
	call(231, 0, 0, 0, 0);
}
