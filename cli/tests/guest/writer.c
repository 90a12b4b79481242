/*
 * The guest of the migration tests: the only program of a Linux that has nothing else.
 *
 * It writes numbered records to its disks for as long as it runs, reads earlier ones back, and
 * keeps changing its memory and checking what it wrote there before. A migration that loses,
 * repeats or garbles a block or a page makes it report "bad"; and its last words say up to
 * which record each disk must be whole, for the test to compare with the image.
 *
 * A disk begins with a ring of SLOTS records of 4096 bytes: record n stands in slot n % SLOTS.
 * A record is little endian: the magic, n, the disk's index, a hash of all its other words, and
 * 508 words of SplitMix64 noise that depend on disk and n. Both sides can compute all of it.
 *
 * Kernel parameters: vbs.disks (how many to wait for), vbs.rate (records per second and disk),
 * vbs.ram (pages changed per second), vbs.pages (out of so many), vbs.life (seconds until it
 * powers off by itself). Console: "stop" ends it, and "ask N" has it answer "vbs-answer N". It
 * says "vbs-ready", then "vbs-at" once a second and "vbs-end" at last, each with the last record
 * on every disk and the count of errors, and "vbs-bad" with the details of an error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 4096, SLOTS = 4096, PAGE = 4096, DISKS = 8, WORDS = RECORD / 8, HEAD = 4 };

struct disk {
	int fd;
	uint64_t next; /* the number of the record that is written next */
};

static int console;
static char parameters[2048];
static struct disk disks[DISKS];
static long disk_count;
static uint64_t errors, laps;

static void say(const char *format, ...)
{
	char line[256];
	va_list list;
	va_start(list, format);
	int length = vsnprintf(line, sizeof line - 1, format, list);
	va_end(list);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	line[length++] = '\n';
	for (int done = 0, wrote; done < length; done += wrote)
		if ((wrote = write(console, line + done, length - done)) <= 0)
			return;
}

static void say_state(const char *word)
{
	char text[200];
	int length = 0;
	for (int i = 0; i < disk_count; i++)
		length += snprintf(text + length, sizeof text - length, " disk%d=%lld", i,
				   (long long)disks[i].next - 1);
	say("%s errors=%llu laps=%llu%s", word, (unsigned long long)errors,
	    (unsigned long long)laps, text);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static long parameter(const char *name, long otherwise)
{
	size_t length = strlen(name);
	for (char *word = parameters; (word = strstr(word, name)); word += length)
		if (word[length] == '=')
			return atol(word + length + 1);
	return otherwise;
}

static void make(uint64_t *record, uint64_t disk, uint64_t number)
{
	uint64_t state = number * 0x100 + disk, hash = 0xcbf29ce484222325;
	memcpy(record, "VBSRING1", 8);
	record[1] = number;
	record[2] = disk;
	for (int i = HEAD; i < WORDS; i++) {
		uint64_t z = state += 0x9e3779b97f4a7c15;
		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
		z = (z ^ z >> 27) * 0x94d049bb133111eb;
		record[i] = z ^ z >> 31;
	}
	for (int i = 0; i < WORDS; i++)
		if (i != 3)
			hash = (hash ^ record[i]) * 0x100000001b3;
	record[3] = hash;
}

static uint64_t *aligned(size_t size)
{
	void *memory;
	if (posix_memalign(&memory, 4096, size))
		abort();
	return memory;
}

/* Writes the next record of a disk and reads an older one back, from all over the ring. */
static void step(int index)
{
	static uint64_t *record, *found;
	struct disk *disk = &disks[index];
	if (!record) {
		record = aligned(RECORD);
		found = aligned(RECORD);
	}
	if (disk->next) {
		uint64_t kept = disk->next < SLOTS ? disk->next : SLOTS;
		uint64_t number = disk->next - 1 - disk->next * 2654435761u % kept;
		make(record, index, number);
		if (pread(disk->fd, found, RECORD, number % SLOTS * RECORD) != RECORD) {
			errors++;
			say("vbs-bad disk %d: read: %s", index, strerror(errno));
		} else if (memcmp(record, found, RECORD)) {
			errors++;
			say("vbs-bad disk %d: record %llu reads as %llx %llu", index,
			    (unsigned long long)number, (unsigned long long)found[0],
			    (unsigned long long)found[1]);
		}
	}
	make(record, index, disk->next);
	if (pwrite(disk->fd, record, RECORD, disk->next % SLOTS * RECORD) != RECORD) {
		errors++;
		say("vbs-bad disk %d: write: %s", index, strerror(errno));
		return;
	}
	disk->next++;
}

/* Changes the next page, which must hold what the last lap left in it. */
static void turn_page(uint64_t *memory, uint64_t pages)
{
	static uint64_t at;
	uint64_t *page = memory + at * (PAGE / 8);
	for (int i = 0; i < PAGE / 8; i += 64) {
		if (page[i] != (laps << 32 ^ (at << 8 | i))) {
			errors++;
			say("vbs-bad page %llu: %llx in lap %llu", (unsigned long long)at,
			    (unsigned long long)page[i], (unsigned long long)laps);
		}
		page[i] = (laps + 1) << 32 ^ (at << 8 | i);
	}
	if (++at == pages) {
		at = 0;
		laps++;
	}
}

static void load_modules(void)
{
	char name[100], path[120];
	FILE *list = fopen("/modules/list", "r");
	while (list && fscanf(list, "%99s", name) == 1) {
		snprintf(path, sizeof path, "/modules/%s", name);
		int fd = open(path, O_RDONLY);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			say("vbs-bad module %s: %s", name, strerror(errno));
		close(fd);
	}
}

static void open_disks(void)
{
	for (int i = 0; i < disk_count; i++) {
		char path[] = "/dev/vda";
		path[7] += i;
		int tries = 0;
		while ((disks[i].fd = open(path, O_RDWR | O_DIRECT)) < 0)
			if (++tries == 500) {
				errors++;
				say("vbs-bad no %s", path);
				return;
			} else
				usleep(10000);
	}
}

/* Whether "stop" was typed; a question is answered. */
static int told_to_stop(void)
{
	static char line[64];
	static size_t length;
	struct pollfd input = { console, POLLIN, 0 };
	if (poll(&input, 1, 5) <= 0)
		return 0;
	ssize_t more = read(console, line + length, sizeof line - 1 - length);
	if (more > 0)
		length += more;
	line[length] = 0;
	int stop = strstr(line, "stop") != 0;
	char *question = strstr(line, "ask ");
	if (question && strchr(question, '\n'))
		say("vbs-answer %ld", atol(question + 4));
	if (strchr(line, '\n') || length == sizeof line - 1)
		length = 0;
	return stop;
}

int main(void)
{
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	console = open("/dev/console", O_RDWR);
	int fd = open("/proc/cmdline", O_RDONLY);
	if (fd >= 0 && read(fd, parameters, sizeof parameters - 1) < 0)
		say("vbs-bad parameters: %s", strerror(errno));
	close(fd);

	disk_count = parameter("vbs.disks", 1);
	if (disk_count < 0 || disk_count > DISKS)
		disk_count = DISKS;
	long rate = parameter("vbs.rate", 100), ram = parameter("vbs.ram", 1000);
	long pages = parameter("vbs.pages", 2048), life = parameter("vbs.life", 300);
	load_modules();
	open_disks();
	uint64_t *memory = aligned((size_t)pages * PAGE);
	for (long page = 0; page < pages; page++)
		for (int i = 0; i < PAGE / 8; i++)
			memory[page * (PAGE / 8) + i] = (uint64_t)page << 8 | i;
	say_state("vbs-ready");

	double start = now(), last = start, said = start, records = 0, turns = 0;
	while (!told_to_stop() && now() - start < life) {
		double time = now(), passed = time - last;
		last = time;
		/* It may have stood still for long: what it missed is not made up for. */
		if (passed > 0.1)
			passed = 0.1;
		for (records += passed * rate; records >= 1; records--)
			for (int i = 0; i < disk_count; i++)
				step(i);
		for (turns += passed * ram; turns >= 1; turns--)
			turn_page(memory, pages);
		if (time - said >= 1) {
			said = time;
			say_state("vbs-at");
		}
	}
	for (int i = 0; i < disk_count; i++)
		if (fsync(disks[i].fd))
			say("vbs-bad disk %d: sync: %s", i, strerror(errno));
	say_state("vbs-end");
	tcdrain(console);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
