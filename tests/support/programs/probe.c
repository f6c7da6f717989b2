/*
 * A delegate for the tests: records what it is in $RECORD_DIRECTORY/delegate.$CORE_PID, with the core beside it.
 * The directory gets this name only at the very end: where it is, the delegate has done all of its work.
 *
 * A delegate's environment is that of the faulting process, so a test steers it with `docker run -e`:
 *   PROBE_LINGER=SECONDS  works on for that long after the end of the core
 *   PROBE_STDERR=TEXT     writes a line to standard error
 *   PROBE_EXIT=STATUS     ends with this exit status
 */
#include "facts.h"

int main(void)
{
	char hidden[PATH_MAX], final[PATH_MAX], buffer[1 << 16];
	const char *pid = getenv("CORE_PID"), *linger = getenv("PROBE_LINGER");
	const char *text = getenv("PROBE_STDERR"), *status = getenv("PROBE_EXIT");
	size_t length;

	umask(0);
	snprintf(hidden, sizeof hidden, "%s/.delegate.%s", record_directory(), pid ? pid : "unknown");
	snprintf(final, sizeof final, "%s/delegate.%s", record_directory(), pid ? pid : "unknown");
	write_facts(hidden);

	FILE *core = create(hidden, "core");
	while ((length = fread(buffer, 1, sizeof buffer, stdin)) > 0)
		if (fwrite(buffer, 1, length, core) != length)
			fail("core");
	if (fclose(core))
		fail("core");

	if (linger)
		sleep(atoi(linger));
	if (text)
		fprintf(stderr, "%s\n", text);
	if (rename(hidden, final))
		fail(final);
	return status ? atoi(status) : 0;
}
