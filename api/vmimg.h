/* SPDX-License-Identifier: MIT */
/*
 * vmimg.h - libvmimg's one public header: snapshots of every disk of every VM of a collection at one
 * instant, kept as copy-on-write layers (spec/snapshot.md), under a CreateSnapshot API modelled on
 * Msvm_CollectionSnapshotService (spec/api.md).
 *
 * Errors. Functions that return int give 0 (or a count) or a negative errno with these fixed
 * meanings: -EUCLEAN the file breaks the format, -EBADMSG a checksum does not match, -ENOTSUP an
 * unknown incompatible feature, -ENOTRECOVERABLE an earlier failed flush poisoned the layer.
 * Functions that return uint32_t give the API family's numbers (enum vmimg_return). Detail goes to
 * an optional caller-owned struct vmimg_error. A failed call leaves everything as it was. The library
 * never prints, exits or uses thread-locals.
 *
 * Threads. A service, a job and an image may be used by any thread. A queue belongs to the thread
 * that created it: every call that takes a queue, or a disk attached to it, is made on that thread;
 * exceptions say so.
 *
 * Ownership. Pointers are borrowed for the call unless the text says "takes" or "keeps".
 */
#ifndef VMIMG_H
#define VMIMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VMIMG_API __attribute__((visibility("default")))

#define VMIMG_NAME_MAX 64 /* bytes of one name, [A-Za-z0-9][A-Za-z0-9._-]{0,63} */

/* Why a call failed: what, where, found, expected. Written on failure only. */
struct vmimg_error {
	int32_t code; /* negative errno, or the CIM number that was returned */
	char message[508];
};

/* --- numbers of the API family (spec/api.md RC-1, RC-2) --- */
enum vmimg_return {
	VMIMG_OK = 0,
	VMIMG_NOT_SUPPORTED = 1,
	VMIMG_FAILED = 2,
	VMIMG_TIMEOUT = 3,
	VMIMG_INVALID_PARAMETER = 4,
	VMIMG_INVALID_STATE = 5,
	VMIMG_INVALID_TYPE = 6,
	VMIMG_JOB_STARTED = 4096,
	/* collection management, and ErrorCode of a failed job */
	VMIMG_V_FAILED = 32768,
	VMIMG_V_ACCESS_DENIED = 32769,
	VMIMG_V_NOT_SUPPORTED = 32770,
	VMIMG_V_UNKNOWN = 32771,
	VMIMG_V_TIMEOUT = 32772,
	VMIMG_V_INVALID_PARAMETER = 32773,
	VMIMG_V_IN_USE = 32774,
	VMIMG_V_INVALID_STATE = 32775,
	VMIMG_V_BAD_TYPE = 32776,
	VMIMG_V_NOT_AVAILABLE = 32777,
	VMIMG_V_NO_MEMORY = 32778,
	VMIMG_V_NOT_FOUND = 32779,
};

enum vmimg_snapshot_type {
	VMIMG_SNAPSHOT_UNKNOWN = 0,
	VMIMG_SNAPSHOT_STANDARD = 1,
	VMIMG_SNAPSHOT_RECOVERY = 2,
};

/* ConsistencyLevel of requests and snapshots. */
enum vmimg_consistency {
	VMIMG_CONSISTENCY_UNKNOWN = 0,
	VMIMG_CONSISTENCY_APPLICATION = 1,
	VMIMG_CONSISTENCY_CRASH = 2,
};

/* ReferencePointType of the collection service and of its objects. */
enum vmimg_refpoint_type {
	VMIMG_REFPOINT_UNKNOWN = 0,
	VMIMG_REFPOINT_LOG = 1, /* not supported */
	VMIMG_REFPOINT_RCT = 2,
};

/* ConsistencyLevel of a collection's reference point, and of nothing else: the other way round. */
enum vmimg_refpoint_consistency {
	VMIMG_REFPOINT_CONSISTENCY_UNKNOWN = 0,
	VMIMG_REFPOINT_CONSISTENCY_CRASH = 1,
	VMIMG_REFPOINT_CONSISTENCY_APPLICATION = 2,
};

/* --- store and service --- */
struct vmimg_service;

struct vmimg_options {
	uint32_t size;     /* sizeof(struct vmimg_options), for later growth */
	uint32_t buffered; /* 1: through the page cache; 0: direct I/O where there is any */
	uint32_t background_threads; /* at most 64; 0: default (3) */
	uint32_t standby;            /* overlays kept ready for each attached disk: 0 or 1 */
	uint64_t log_bound;          /* bytes of map log after which a disk rolls; 0: 128 MiB */
	uint64_t map_bound;          /* blocks in a head after which a disk rolls; 0: 4 Mi */
	uint64_t map_memory; /* bytes of map a disk keeps for its sealed layers; 0: 64 MiB */
	uint64_t seal_rate;  /* bytes a second read for sealing; 0: 64 MiB/s */
	/* extra directories that qcow2 backing files may lie in, NULL-ended; or NULL */
	const char *const *base_dirs;
	/* The program that holds a lease on frozen guests: arguments, NULL-ended; it calls
	 * vmimg_lease_run(0). NULL: {"vmimg", "lease", NULL}, looked for in PATH. */
	const char *const *lease_argv;
	/* bytes a second read for folding; 0: 64 MiB/s, UINT64_MAX: as fast as it goes */
	uint64_t fold_rate;
};

/* Makes an empty store in @dir, which must not exist or be empty. */
VMIMG_API int vmimg_store_init(const char *dir, struct vmimg_error *err);
/*
 * Opens the store in @dir and takes its lock: -EBUSY when another process has it (and until that
 * one's last request in flight is done). Recovers what a crash left (spec/snapshot.md, "Recovery"), and
 * thaws in the background guests that a dead process may have left frozen (spec/quiesce.md).
 * @options: NULL for the defaults; copied.
 */
VMIMG_API int vmimg_open(const char *dir, const struct vmimg_options *options,
			 struct vmimg_error *err, struct vmimg_service **ret);
/*
 * Waits for running jobs, detaches nothing: every disk must be detached, every queue destroyed and every
 * subscription ended, else -EBUSY. Waits up to a second for guests that are still to be thawed; their
 * lease goes on. NULL is fine.
 */
VMIMG_API int vmimg_close(struct vmimg_service *svc);

/* --- references --- */
/* Names a created or affected element; the text form is COLLECTION@SNAPSHOT and the like. */
struct vmimg_ref {
	char name[2 * VMIMG_NAME_MAX + 2]; /* "prod@s1" */
	char id[37];                       /* uuid text */
};

/* --- virtual machines and disks --- */
VMIMG_API int vmimg_vm_create(struct vmimg_service *svc, const char *vm, struct vmimg_error *err);
/* -EBUSY: a disk is attached, or the VM is a member of a collection; -ENOTEMPTY: it has disks. */
VMIMG_API int vmimg_vm_delete(struct vmimg_service *svc, const char *vm, struct vmimg_error *err);

struct vmimg_vm_spec {
	uint32_t size_of;        /* sizeof(struct vmimg_vm_spec) */
	const char *guest_agent; /* see vmimg_vm_set_guest_agent(); NULL or "": none */
};
/* @spec: NULL is fine. -EINVAL, -EEXIST. */
VMIMG_API int vmimg_vm_create_with(struct vmimg_service *svc, const char *vm,
				   const struct vmimg_vm_spec *spec, struct vmimg_error *err);
/*
 * The Unix socket of the VM's QEMU guest agent, an absolute path of 2 to 107 bytes, or NULL or "": none.
 * Application consistency freezes the VM through it (spec/quiesce.md). A thaw that still waits for
 * an agent at another socket is given up: who calls this answers for that guest. Any thread.
 */
VMIMG_API int vmimg_vm_set_guest_agent(struct vmimg_service *svc, const char *vm,
				       const char *socket, struct vmimg_error *err);

/*
 * A guest that the embedder freezes itself. Both calls come on threads of the library, those of
 * different guests at the same time (QU-23, QU-24).
 * @freeze: 0 when the guest is frozen, else a negative errno; done by @deadline_ns (CLOCK_MONOTONIC).
 * @thaw: 0 when it is thawed, also when it was not frozen; else called again. It may come while
 * freeze still runs, when that is late.
 */
struct vmimg_guest_ops {
	int (*freeze)(void *arg, uint64_t deadline_ns);
	int (*thaw)(void *arg);
};
/*
 * Freezes @vm by @ops (copied), @arg being theirs, instead of by its agent, until the service is
 * closed. @ops NULL: no more. -EBUSY while a create uses the present ones, or a call of them runs.
 */
VMIMG_API int vmimg_vm_set_guest(struct vmimg_service *svc, const char *vm,
				 const struct vmimg_guest_ops *ops, void *arg,
				 struct vmimg_error *err);

struct vmimg_disk_spec {
	uint32_t size_of;   /* sizeof(struct vmimg_disk_spec) */
	uint64_t size;      /* bytes, multiple of 512; 0 with @from: the image's */
	const char *from;   /* image to import, or NULL */
	const char *format; /* "raw", "qcow2" or NULL: probed (qcow2 magic, else raw) */
	bool in_place;    /* use @from where it is: raw as head, qcow2 read-only under an overlay */
	bool independent; /* not snapshottable */
	uint32_t block_bits; /* of its overlays, 12..16; 0: 12 */
};
/* @disk: "VM/DISK". Without in_place the data is copied into the store and made durable. */
VMIMG_API int vmimg_disk_create(struct vmimg_service *svc, const char *disk,
				const struct vmimg_disk_spec *spec, struct vmimg_error *err);
/* -EBUSY: attached, in a running create, a snapshot holds it, or a clone stands on it; @err says which. */
VMIMG_API int vmimg_disk_delete(struct vmimg_service *svc, const char *disk,
				struct vmimg_error *err);
/* Grow only (-EINVAL to shrink); multiple of 512. An attached disk grows under its clients; the call
 * waits for its queue's thread, 10 s at most, so it is not for that thread: -EDEADLK. -EBUSY: attached
 * read-only, or a snapshot is being created. */
VMIMG_API int vmimg_disk_resize(struct vmimg_service *svc, const char *disk, uint64_t size,
				struct vmimg_error *err);

/*
 * Cuts the disk off at @size, a multiple of its block size: what was beyond is gone from it, and zeros
 * when it grows again; snapshots keep their sizes and content (spec/space.md RZ-*). -EINVAL: not
 * smaller; -EBUSY: attached, or a snapshot is being created.
 */
VMIMG_API int vmimg_disk_shrink(struct vmimg_service *svc, const char *disk, uint64_t size,
				struct vmimg_error *err);

/* --- collections (Msvm_CollectionManagementService) --- */
/*
 * These complete at once: 0 or a vendor code 32768..32779, never 4096, and no job. @name NULL or "":
 * a default name is made. @id: uuid text, NULL: made. @type: 0 of virtual systems; 1 is 32770.
 */
VMIMG_API uint32_t vmimg_define_collection(struct vmimg_service *svc, const char *name,
					   const char *id, uint16_t type, struct vmimg_ref *result,
					   struct vmimg_error *err);
/* 32775 while it has snapshots or reference points, or one is being created: none is ever orphaned. */
VMIMG_API uint32_t vmimg_destroy_collection(struct vmimg_service *svc, const char *collection,
					    struct vmimg_error *err);
VMIMG_API uint32_t vmimg_rename_collection(struct vmimg_service *svc, const char *collection,
					   const char *new_name, struct vmimg_error *err);
/* Member first, as in the API family. A VM may be in several collections. */
VMIMG_API uint32_t vmimg_add_member(struct vmimg_service *svc, const char *vm,
				    const char *collection, struct vmimg_error *err);
VMIMG_API uint32_t vmimg_remove_member(struct vmimg_service *svc, const char *vm,
				       const char *collection, struct vmimg_error *err);
/* Idempotent: 0 also when there is no such collection. */
VMIMG_API uint32_t vmimg_remove_member_by_id(struct vmimg_service *svc, const char *vm,
					     const char *collection_id, struct vmimg_error *err);

/* --- snapshots --- */
struct vmimg_job;

/*
 * CreateSnapshot: every disk of every VM in @collection at one instant (spec/api.md CSN-*).
 * @settings: JSON object or NULL (or ""): ConsistencyLevel, IgnoreNonSnapshottableDisks,
 * GuestBackupType, ElementName, Synchronous, Timeout (ms to the cut), MaxStall (ms), FallbackToCrash.
 * @type: VMIMG_SNAPSHOT_STANDARD or _RECOVERY.
 * @result: in, NULL or .name = the wanted name ("" = made, "COLLECTION@NAME" or "NAME"); out, set
 * with 0, else by the job's affected element.
 * Returns 4096 with *@job started and already Running; with Synchronous 0, 2 or 3, the job's outcome;
 * 1, 4, 5, 6 at once with nothing changed and *@job NULL. @err: why, also for a synchronous failure.
 * @job: release with vmimg_job_put(); may be NULL.
 * Any thread, but with Synchronous not the thread of a queue that has a member disk attached and
 * requests in flight, nor, with ConsistencyLevel 1, one that serves a guest: it would wait for itself,
 * and time out (3).
 */
VMIMG_API uint32_t vmimg_create_snapshot(struct vmimg_service *svc, const char *collection,
					 const char *settings, uint16_t type,
					 struct vmimg_ref *result, struct vmimg_job **job,
					 struct vmimg_error *err);
/* What vmimg_create_snapshot() would answer now, without creating: 0, 1, 4, 5 or 6. */
VMIMG_API uint32_t vmimg_check_snapshot(struct vmimg_service *svc, const char *collection,
					const char *settings, uint16_t type, const char *name,
					struct vmimg_error *err);

/*
 * DestroySnapshot: deletes "COLLECTION@NAME" and nothing else (spec/lifecycle.md DL-*). Copies nothing;
 * the space comes back in the background. 0: gone, durably; 4: no such snapshot; 5: held, or the catalog is
 * poisoned; 2: @err says whether the next open goes on with it. @job: NULL, or set with 0 to the job, which
 * has ended; release with vmimg_job_put(). Any thread but a queue's.
 */
VMIMG_API uint32_t vmimg_destroy_snapshot(struct vmimg_service *svc, const char *snapshot,
					  struct vmimg_job **job, struct vmimg_error *err);

/* The id of "COLLECTION@NAME", which no other snapshot has, later ones of that name neither. -ENOENT. */
VMIMG_API int vmimg_snapshot_id(struct vmimg_service *svc, const char *snapshot,
				struct vmimg_error *err, char id[37]);

/*
 * A hold keeps "COLLECTION@NAME" from being deleted, converted or pruned as long as it is there
 * (spec/space.md HD-*). @tag: a name; a snapshot may have many. 0: durable; 4: no such snapshot,
 * held by that tag already, or not held by it; 2, 5: @err says why. Any thread. Listed in the
 * snapshot's document (DS-8).
 */
VMIMG_API uint32_t vmimg_hold_snapshot(struct vmimg_service *svc, const char *snapshot,
				       const char *tag, struct vmimg_error *err);
VMIMG_API uint32_t vmimg_release_snapshot(struct vmimg_service *svc, const char *snapshot,
					  const char *tag, struct vmimg_error *err);

/*
 * What vmimg_prune_snapshots() keeps: of the newest, and the newest one of each period; 0: not
 * asked for.
 */
struct vmimg_prune {
	uint32_t size_of; /* sizeof(struct vmimg_prune) */
	uint32_t keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly;
	bool automatic; /* automatic snapshots may go, too */
	bool dry_run;   /* decide, delete nothing */
};
/*
 * Deletes those of the collection's snapshots that no rule keeps, oldest first (spec/space.md
 * RT-*); never held ones, nor those being read. Periods are of the local time zone. *@json:
 * {"collection", "dry_run", "kept", "deleted", "snapshots": [{"snapshot", "snapshot_id", "created",
 * "keep", "reasons", "deleted"}]}, newest first; vmimg_free(). 0; 4: no rule, no such collection;
 * 2, 5: the deletion that failed ended it. Any thread but a queue's; takes as long as so many
 * vmimg_destroy_snapshot().
 */
VMIMG_API uint32_t vmimg_prune_snapshots(struct vmimg_service *svc, const char *collection,
					 const struct vmimg_prune *how, struct vmimg_error *err,
					 char **json);

/*
 * ApplySnapshot: brings the disks of "COLLECTION@NAME" back to it, all at once (spec/branch.md AS-*);
 * instant whatever their size. @settings: JSON object or NULL (or ""): KeepState (default true: the state
 * that is left becomes a snapshot, so that the revert can be undone), KeptName (of that one; "": made).
 * 0: done, durably, with *@json {"snapshot", "kept" (name or null), "kept_id", "disks", "untouched":
 * [disks that the snapshot does not hold], "removed_layers", "prepare_ns", "commit_ns", "total_ns"}, for
 * vmimg_free(). 4: no such snapshot, bad settings, KeptName taken; 5: a disk is attached, in a running
 * create, unusable, or of no member any more (@err names it), or the catalog is poisoned; 2: others. Nothing
 * was changed then; where a COMMIT has failed the next open decides. @json, @job NULL are fine; *@job has
 * ended, release with vmimg_job_put(). Any thread but a queue's.
 */
VMIMG_API uint32_t vmimg_apply_snapshot(struct vmimg_service *svc, const char *snapshot,
					const char *settings, char **json, struct vmimg_job **job,
					struct vmimg_error *err);

/* --- what changed (spec/lifecycle.md 3, DF-*) --- */
struct vmimg_changes {
	uint64_t processed_byte_length; /* bytes that were looked at */
	size_t count;
	uint64_t *changed_byte_offsets; /* @count each, parallel: ascending, merged, within the region */
	uint64_t *changed_byte_lengths;
};
/*
 * GetVirtualDiskChanges (Msvm_ImageManagementService): which bytes of @path may differ from what they were
 * at @limit_id (DF-9 to DF-12). Never fewer than differ; none means that nothing was written.
 * @path: "VM/DISK", its state now; or "COLLECTION@NAME/VM/DISK", as that snapshot holds it.
 * @limit_id: the baseline, older or newer: the id of a snapshot, of a reference point or of its change
 * tracking (its RCT id), or "COLLECTION@NAME", or "COLLECTION#NAME".
 * @target_snapshot_id: NULL or "", else the state to look at instead of @path's own, named likewise.
 * @byte_offset, @byte_length: the region; cut at the disk's end. All of it is processed in one call.
 * Returns 0 with *@ret, to be released with vmimg_changes_free(); 32773 an unknown id or a bad
 * argument, 32775 the tracking is lost, and full backups begin anew, 32779 no such disk, and other
 * numbers of 32768..32778. Always synchronous. Any thread but that of a queue with the disk attached.
 */
VMIMG_API uint32_t vmimg_get_virtual_disk_changes(struct vmimg_service *svc, const char *path,
						  const char *limit_id,
						  const char *target_snapshot_id,
						  uint64_t byte_offset, uint64_t byte_length,
						  struct vmimg_changes *ret,
						  struct vmimg_error *err);
VMIMG_API void vmimg_changes_free(struct vmimg_changes *changes); /* empties it; NULL is fine */
/*
 * The same of every disk of a collection, as a document (DF-13): from @from, "COLLECTION@NAME" or
 * "COLLECTION#NAME", to @to, another of them, or NULL: now. *@json is released with vmimg_free(). 0, or
 * -EINVAL, -ENOENT, or another negative errno: nothing can be told. Threads as above.
 */
VMIMG_API int vmimg_diff(struct vmimg_service *svc, const char *from, const char *to,
			 struct vmimg_error *err, char **json);

/* --- space given back in the background (spec/lifecycle.md FO-*) --- */
enum {
	VMIMG_SETTLE_WAIT = 1 << 0,  /* return its outcome instead of 4096 */
	VMIMG_SETTLE_WHOLE = 1 << 1, /* also what does not pay: as few layers as there can be */
};
/*
 * Waits for the background's seals and folds: as a job that ends when nothing pays any more for
 * @name ("VM/DISK", or a collection's disks; NULL: the store). It begins with the heads that hide much of
 * what lies beneath them, which are cut so that they can be folded (FO-19), and has no other effect:
 * cancelling it, or its end by @timeout_ns (UINT64_MAX: none), leaves the folds as they are. 4096, with
 * VMIMG_SETTLE_WAIT 0, 2, 3 or 5; 4: no such disk or collection. @job: NULL, or set with 4096 and the
 * outcomes. Any thread but, with VMIMG_SETTLE_WAIT, a queue's.
 */
VMIMG_API uint32_t vmimg_settle(struct vmimg_service *svc, const char *name, unsigned flags,
				uint64_t timeout_ns, struct vmimg_job **job,
				struct vmimg_error *err);
/*
 * Bytes a second that folds read from now on, also the one under way (0, UINT64_MAX: no limit), until the
 * service is closed. Any thread.
 */
VMIMG_API int vmimg_set_fold_rate(struct vmimg_service *svc, uint64_t bytes_per_second,
				  struct vmimg_error *err);

/*
 * Bytes of the store's file system that new snapshots and folds leave to guests' writes (spec/space.md SG-*);
 * UINT64_MAX: the default, a twentieth of it and at most 1 GiB. Kept in the catalog. -EINVAL.
 */
VMIMG_API int vmimg_set_space_reserve(struct vmimg_service *svc, uint64_t bytes,
				      struct vmimg_error *err);
/* --- reference points (Msvm_CollectionReferencePointService; spec/refpoint.md) --- */
/*
 * ConvertToReferencePoint: of the recovery snapshot "COLLECTION@NAME" only what has changed since is kept
 * track of; the snapshot goes, and its space comes back in the background. At no instant can both be
 * found, or neither. @result: in, NULL or .name = the wanted name ("" = the snapshot's, "COLLECTION#NAME"
 * or "NAME"); out, set with 0. 0: done, durably; 4: no such snapshot, or a bad or taken name; 5: it cannot
 * go now, or the catalog is poisoned; 6: no recovery snapshot; 2: @err says whether the point is made.
 * @job: NULL, or set with 0 to the job (type 200), which has ended; vmimg_job_put(). Any thread but a
 * queue's.
 */
VMIMG_API uint32_t vmimg_convert_to_reference_point(struct vmimg_service *svc, const char *snapshot,
						    struct vmimg_ref *result,
						    struct vmimg_job **job,
						    struct vmimg_error *err);
/*
 * CreateReferencePoint: a point of every disk of every VM of @collection at one instant, without a
 * snapshot. @type: VMIMG_REFPOINT_RCT; 1 for _LOG and vendors' types, 6 for others. Settings, result, job
 * (type 205), returns and threads as with vmimg_create_snapshot(), but "COLLECTION#NAME".
 */
VMIMG_API uint32_t vmimg_create_reference_point(struct vmimg_service *svc, const char *collection,
						const char *settings, uint16_t type,
						struct vmimg_ref *result, struct vmimg_job **job,
						struct vmimg_error *err);
/* DestroyReferencePoint: that one, and no other that depends on it. 0, 2, 4, 5. @job: as above (208). */
VMIMG_API uint32_t vmimg_destroy_reference_point(struct vmimg_service *svc, const char *refpoint,
						 struct vmimg_job **job, struct vmimg_error *err);
/* RemoveAssociatedData: of points based on a log, of which there are none: 6; 4: no such point. */
VMIMG_API uint32_t vmimg_remove_associated_data(struct vmimg_service *svc, const char *refpoint,
						struct vmimg_job **job, struct vmimg_error *err);

/* Msvm_ReferencePointCollection; its disks and their ids: vmimg_describe(). */
struct vmimg_refpoint_info {
	struct vmimg_ref ref; /* "COLLECTION#NAME", CollectionID */
	char element_name[256];
	enum vmimg_refpoint_type reference_point_type;
	enum vmimg_refpoint_consistency consistency_level;
	char virtual_system_collection_id[37];
	bool has_associated_log; /* false: of RCT always */
	uint32_t disks;
	int64_t created_ns; /* wall clock, since 1970 */
};
/* -EINVAL, -ENOENT. */
VMIMG_API int vmimg_refpoint_info(struct vmimg_service *svc, const char *refpoint,
				  struct vmimg_error *err, struct vmimg_refpoint_info *ret);

/*
 * Makes the collection @to of "COLLECTION@NAME": new VMs named TO-VM with disks of the same names, which
 * hold what the snapshot holds and are written at once (spec/branch.md CL-*). Instant; nothing is copied:
 * they stand on the snapshot's layers, which stay as long as that, whatever snapshots go; see
 * vmimg_flatten(). @result: NULL, or set with 0 to the collection. 0: done, durably, with *@json
 * {"snapshot", "collection", "collection_id", "vms", "disks", "skipped": [disks that the snapshot does not
 * hold], "prepare_ns", "commit_ns", "total_ns"}, for vmimg_free(). 4: no such snapshot, a bad or taken
 * name; 5: a disk of it is busy, or the catalog is poisoned; 2: others. Nothing was changed then, as above.
 * @json, @job NULL are fine; *@job has ended. Any thread but a queue's; the origins may be attached.
 */
VMIMG_API uint32_t vmimg_clone_snapshot(struct vmimg_service *svc, const char *snapshot,
					const char *to, struct vmimg_ref *result, char **json,
					struct vmimg_job **job, struct vmimg_error *err);

enum {
	VMIMG_FLATTEN_WAIT = 1 << 0, /* return its outcome instead of 4096 */
};
/*
 * Makes clones independent (spec/branch.md FT-*): @name "VM/DISK", or a collection, whose disks follow one
 * after the other. What they have on other disks' layers is copied; attached or not, they are used all the
 * while. @rate_limit: bytes a second, 0: none. 4096 with a job of type 304, ours; with VMIMG_FLATTEN_WAIT
 * 0, 2, 3 or 5; 4: no such disk or collection. A disk that stands on no other's is done at once. @job: NULL,
 * or set with 4096 and the outcomes; its bytes are of the disks' size. Cancelled, disks that are done stay
 * so. Any thread but, with VMIMG_FLATTEN_WAIT, a queue's.
 */
VMIMG_API uint32_t vmimg_flatten(struct vmimg_service *svc, const char *name, uint64_t rate_limit,
				 unsigned flags, struct vmimg_job **job, struct vmimg_error *err);

/* --- jobs (CIM_ConcreteJob) --- */
enum vmimg_job_state {
	VMIMG_JOB_NEW = 2,
	VMIMG_JOB_STARTING = 3,
	VMIMG_JOB_RUNNING = 4,
	VMIMG_JOB_SUSPENDED = 5,
	VMIMG_JOB_SHUTTING_DOWN = 6,
	VMIMG_JOB_COMPLETED = 7,
	VMIMG_JOB_TERMINATED = 8,
	VMIMG_JOB_KILLED = 9,
	VMIMG_JOB_EXCEPTION = 10,
};

enum vmimg_requested_state {
	VMIMG_REQUEST_START = 2,
	VMIMG_REQUEST_SUSPEND = 3,
	VMIMG_REQUEST_TERMINATE = 4,
	VMIMG_REQUEST_KILL = 5,
	VMIMG_REQUEST_SERVICE = 6,
};

/* Return values of vmimg_job_request_state_change(); not those of enum vmimg_return. */
enum vmimg_request_return {
	VMIMG_REQUEST_OK = 0,
	VMIMG_REQUEST_NOT_SUPPORTED = 1,
	VMIMG_REQUEST_FAILED = 4,
	VMIMG_REQUEST_INVALID_PARAMETER = 5,
	VMIMG_REQUEST_TRANSITION_STARTED = 4096,
	VMIMG_REQUEST_INVALID_TRANSITION = 4097,
	VMIMG_REQUEST_TIMEOUT_UNSUPPORTED = 4098,
	VMIMG_REQUEST_BUSY = 4099,
};

#define VMIMG_JOB_TYPE_MERGE                           50
#define VMIMG_JOB_TYPE_EXPORT                          62
#define VMIMG_JOB_TYPE_APPLY_SNAPSHOT                  71
#define VMIMG_JOB_TYPE_DELETE_SNAPSHOT                 72
#define VMIMG_JOB_TYPE_SNAPSHOT_COLLECTION             198
#define VMIMG_JOB_TYPE_CONVERT_TO_REFPOINT             200
#define VMIMG_JOB_TYPE_CREATE_REFPOINT_COLLECTION      205
#define VMIMG_JOB_TYPE_EXPORT_REFPOINT_COLLECTION      206
#define VMIMG_JOB_TYPE_REMOVE_REFPOINT_DATA_COLLECTION 207
#define VMIMG_JOB_TYPE_DELETE_REFPOINT_COLLECTION      208
#define VMIMG_JOB_TYPE_SETTLE                          300 /* ours */
#define VMIMG_JOB_TYPE_IMPORT                          301 /* ours: the family has no number for it */
#define VMIMG_JOB_TYPE_VERIFY                          302 /* ours */
#define VMIMG_JOB_TYPE_CLONE                           303 /* ours: the family has none */
#define VMIMG_JOB_TYPE_FLATTEN                         304 /* ours */
#define VMIMG_EFFECT_CREATE                            5

struct vmimg_job_info {
	char instance_id[37]; /* uuid text */
	char name[2 * VMIMG_NAME_MAX + 2];
	uint16_t job_state; /* enum vmimg_job_state */
	uint16_t job_type;
	uint16_t percent_complete;   /* 0..100, never falls; 100 only when Completed */
	uint16_t error_code;         /* 0 unless Exception, Terminated or Killed */
	char error_description[512]; /* non-empty whenever error_code is not 0 */
	char job_status[256];        /* for humans: what it is doing */
	bool cancellable;
	int64_t time_submitted_ns; /* wall clock, since 1970; 0: not yet */
	int64_t start_time_ns;
	int64_t time_of_last_state_change_ns;
	uint64_t elapsed_ns;              /* stops at the end */
	uint64_t time_before_removal_ns;  /* kept at least so long after the end: 5 minutes */
	struct vmimg_ref affected;        /* the one affected element; "" until there is one */
	uint16_t element_effect;          /* VMIMG_EFFECT_CREATE, or 0 */
	uint64_t bytes_done, bytes_total; /* 0: it does not count bytes, or nobody knows any more */
	uint64_t bytes_per_second;        /* of the last few seconds; 0: cannot tell, or ended */
	uint64_t remaining_ns;            /* estimate; UINT64_MAX: cannot tell, or ended */
	uint64_t rate_limit;              /* bytes a second; 0: none */
};

/* By instance id. -ENOENT. Release with vmimg_job_put(), before or after vmimg_close(). */
VMIMG_API int vmimg_job_get(struct vmimg_service *svc, const char *instance_id,
			    struct vmimg_error *err, struct vmimg_job **ret);
VMIMG_API void vmimg_job_put(struct vmimg_job *job); /* NULL is fine */
VMIMG_API void vmimg_job_info(struct vmimg_job *job, struct vmimg_job_info *ret);
/* Waits until the job ended; -ETIMEDOUT after @timeout_ns (UINT64_MAX: no limit). */
VMIMG_API int vmimg_job_wait(struct vmimg_job *job, uint64_t timeout_ns);
/* Readable once the job has ended; owned by the job. -EMFILE and the like on failure. */
VMIMG_API int vmimg_job_fd(struct vmimg_job *job);
/*
 * RequestStateChange. TERMINATE and KILL cancel while Cancellable (of a create: until the cut); then
 * and on ended jobs 4097. @timeout_ns: 0 only, else 4098. START, SUSPEND, SERVICE: 1.
 */
VMIMG_API uint32_t vmimg_job_request_state_change(struct vmimg_job *job, uint16_t requested_state,
						  uint64_t timeout_ns, struct vmimg_error *err);
/*
 * Another limit for what the job reads and writes, bytes a second (0: none), at once; of a fold (type
 * 50) it is that of all folds. -EINVAL: it has ended.
 */
VMIMG_API int vmimg_job_set_rate(struct vmimg_job *job, uint64_t bytes_per_second,
				 struct vmimg_error *err);
/*
 * Terminates every job that can be cancelled, but creates, which end soon by themselves: for a service that
 * is about to be closed, which waits for jobs. Any thread.
 */
VMIMG_API void vmimg_cancel_jobs(struct vmimg_service *svc);
/* GetErrorEx: the error as a JSON array of Msvm_Error-like objects, or "null". Free with vmimg_free(). */
VMIMG_API int vmimg_job_get_error(struct vmimg_job *job, char **json);

/* --- export and import (spec/stream.md) --- */
/*
 * ExportSnapshot: "COLLECTION@NAME" into the new @directory, an absolute path, or into a pipe: a path that
 * is a FIFO, which somebody reads already. @settings: JSON object or NULL: CopyVmStorage (true),
 * DifferentialBackupBase ("COLLECTION@NAME" or "COLLECTION#NAME"), BackupIntent (1 PreserveChain, 2
 * Merge), and ours: Format ("stream", "raw", "qcow2"), Compress, Resume, RateLimit (bytes a second),
 * Synchronous. Returns 4096 with *@job started; with Synchronous the outcome; 4, 5 at once, with @err.
 * @job: NULL, or released with vmimg_job_put(). What came of it: vmimg_job_report(). Any thread but a
 * queue's.
 */
VMIMG_API uint32_t vmimg_export_snapshot(struct vmimg_service *svc, const char *snapshot,
					 const char *directory, const char *settings,
					 struct vmimg_job **job, struct vmimg_error *err);
/*
 * ExportReferencePoint: "COLLECTION#NAME" into the new @directory: refpoint.json with the point, its disks
 * and ids, and what has changed since another point (spec/stream.md XP-9). @settings: JSON object or NULL:
 * BaseReferencePointCollection ("COLLECTION#NAME"), and ours: Synchronous. Returns and threads as above;
 * job type 206.
 */
VMIMG_API uint32_t vmimg_export_reference_point(struct vmimg_service *svc, const char *refpoint,
						const char *directory, const char *settings,
						struct vmimg_job **job, struct vmimg_error *err);
/*
 * The snapshot of an export: @source is an absolute path of an exported directory (a stream, raw or qcow2
 * files), of a stream's file, or of a FIFO. A full one makes its collection, VMs and disks; an increment
 * goes onto its base, exactly, or is refused. @settings: Collection (another name for a full one),
 * BackupIntent (2: the base is deleted afterwards; as the export says by default), RateLimit, Synchronous.
 * The rest as above; the job's affected element is the snapshot.
 */
VMIMG_API uint32_t vmimg_import_snapshot(struct vmimg_service *svc, const char *source,
					 const char *settings, struct vmimg_job **job,
					 struct vmimg_error *err);
/*
 * Reads every block of "COLLECTION@NAME" again, in all layers, and compares it with its checksum
 * (spec/stream.md VF-*). A job: what is damaged makes it fail, saying where the
 * first is; its report has the rest. @settings: RateLimit, Synchronous.
 */
VMIMG_API uint32_t vmimg_verify_snapshot(struct vmimg_service *svc, const char *snapshot,
					 const char *settings, struct vmimg_job **job,
					 struct vmimg_error *err);
struct vmimg_verify {
	/* Bytes of the stream; @total 0: of a pipe. On the calling thread. Not 0: -ECANCELED. */
	int (*progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
};
/*
 * The same of a stream, without a store: a file, an exported directory, or a FIFO. 0: whole and sound;
 * else what is wrong. @json: NULL, or set in both cases where there was anything to read, else NULL: the
 * report; vmimg_free(). @how: NULL is fine. Any thread.
 */
VMIMG_API int vmimg_verify_stream(const char *source, const struct vmimg_verify *how,
				  struct vmimg_error *err, char **json);
/*
 * What an export, import or verification that has ended came to, as JSON (spec/stream.md XP-6); of the last
 * 64. -ENOENT: it has left none. Free with vmimg_free().
 */
VMIMG_API int vmimg_job_report(struct vmimg_service *svc, const char *instance_id,
			       struct vmimg_error *err, char **json);

/* --- what is there: JSON documents, schemas in spec/api.md DS-* --- */
enum vmimg_kind {
	VMIMG_KIND_STORE = 0, /* name NULL */
	VMIMG_KIND_VM = 1,
	VMIMG_KIND_DISK = 2,
	VMIMG_KIND_COLLECTION = 3,
	VMIMG_KIND_SNAPSHOT = 4, /* "COLLECTION@NAME"; list: all or "COLLECTION" */
	VMIMG_KIND_JOB = 5,
	VMIMG_KIND_TREE = 6,     /* chains, snapshots and sizes of everything; name NULL */
	VMIMG_KIND_REFPOINT = 7, /* "COLLECTION#NAME"; list: all or "COLLECTION" */
	/* or'ed to one of these: without counts of space, which read the layers' indexes */
	VMIMG_KIND_BRIEF = 0x100,
};
/* One element; *@json is released with vmimg_free(). -ENOENT when there is none of that name. */
VMIMG_API int vmimg_describe(struct vmimg_service *svc, enum vmimg_kind kind, const char *name,
			     struct vmimg_error *err, char **json);
/* All of a kind as a JSON array, or those of @filter (a VM's disks, a collection's snapshots). */
VMIMG_API int vmimg_list(struct vmimg_service *svc, enum vmimg_kind kind, const char *filter,
			 struct vmimg_error *err, char **json);
VMIMG_API void vmimg_free(void *ptr);

/* --- the calls of this header as JSON, for those who carry them elsewhere (spec/control.md) --- */
/*
 * One request, one reply: @request is a JSON object {"id", "method", "params"}, at most 64 KiB; *@reply
 * is {"id", "result"} or {"id", "error": {"code", "message", "field"}}, without line breaks, released
 * with vmimg_free(). Returns 0 with a result, 1 with an error, and without a reply -ENOMEM, or -EINVAL
 * when an argument is NULL. Any thread; it blocks as long as what it calls.
 */
VMIMG_API int vmimg_call(struct vmimg_service *svc, const char *request, char **reply);

/* --- events (spec/api.md EV-*) --- */
struct vmimg_subscription;
/*
 * Calls @callback, on a thread of the library, for every event from now on, one at a time and in order.
 * @json: one object, borrowed for the call: {"event": "job" | "snapshot" | "vm" | "disk" | "collection" |
 * "refpoint" | "space" | "poisoned" | "lost", ...}. The callback must be quick and must not call the library.
 */
VMIMG_API int vmimg_subscribe(struct vmimg_service *svc,
			      void (*callback)(void *arg, const char *json), void *arg,
			      struct vmimg_error *err, struct vmimg_subscription **ret);
/* Waits until no callback of it runs; none comes later. -EDEADLK within a callback. NULL is fine. */
VMIMG_API int vmimg_unsubscribe(struct vmimg_subscription *subscription);

/* --- the block path: queues, disks, requests --- */
struct vmimg_queue;
struct vmimg_disk;
struct io_uring;

enum vmimg_op {
	VMIMG_READ = 0,
	VMIMG_WRITE = 1,
	VMIMG_FLUSH = 2,
	VMIMG_WRITE_ZEROES = 3,
	VMIMG_DISCARD = 4, /* reads as zeros afterwards */
	VMIMG_EXTENTS = 5, /* block status of [offset, offset + length): BQ-17 */
};

enum {
	VMIMG_FUA = 1 << 0, /* WRITE, WRITE_ZEROES, DISCARD: durable when completed */
};

struct iovec;

enum vmimg_extent_state {
	VMIMG_EXTENT_DATA = 1,
	VMIMG_EXTENT_ZERO = 2, /* reads as zeros, and a layer says so */
	VMIMG_EXTENT_HOLE = 3, /* reads as zeros: nothing in any layer */
};

/*
 * What VMIMG_EXTENTS writes: request.iov[0] is an array of them, iovcnt 1, length any range of the
 * disk that is not empty. The completion's result is their number, at least 1; adjacent, from @offset
 * on, the last one clipped to the range. They may end before it: the array is full, or one request has
 * done its share of work (BQ-19); ask again from where they end.
 */
struct vmimg_disk_extent {
	uint64_t length; /* bytes */
	uint32_t state;  /* enum vmimg_extent_state */
	uint32_t layer;  /* ordinal of the newest layer that holds it, 0 the base; see
			    vmimg_disk_frozen_layer(); of a hole 0 */
};

/* A request: caller-owned, copied by submit; the buffers stay the request's until its completion. */
struct vmimg_request {
	struct vmimg_disk *disk;
	uint8_t op;    /* enum vmimg_op */
	uint8_t flags; /* VMIMG_FUA */
	uint16_t reserved;
	uint32_t iovcnt;         /* READ, WRITE: 1..1024 */
	const struct iovec *iov; /* READ, WRITE; borrowed until completion */
	uint64_t offset;         /* bytes, any alignment */
	uint64_t length;         /* bytes; = the sum of iov for READ and WRITE; FLUSH: 0 */
	uint64_t user_data;
};

struct vmimg_completion {
	uint64_t user_data;
	int32_t result; /* 0 or negative errno; foreign: the cqe's res */
	uint32_t flags; /* foreign: the cqe's flags */
	bool foreign;   /* the caller's own ring operation (vmimg_queue_ring()) */
};

/*
 * A queue for the calling thread. @depth: requests in flight, 1..4096. Each queue has an io_uring of
 * its own, set up for one issuing thread.
 */
VMIMG_API int vmimg_queue_create(struct vmimg_service *svc, unsigned depth, struct vmimg_error *err,
				 struct vmimg_queue **ret);
/* -EBUSY while a disk is attached or a request in flight. NULL is fine. */
VMIMG_API int vmimg_queue_destroy(struct vmimg_queue *queue);
/* Readable when vmimg_queue_poll() has something to do. It must then be called, also while the
 * caller has no requests in flight: cuts, flushes and background work go through it. The queue owns
 * it. Negative errno (-EMFILE and the like) on failure. */
VMIMG_API int vmimg_queue_fd(struct vmimg_queue *queue);
/*
 * The queue's ring, for the caller's own operations; their user_data must have bit 0 set and comes
 * back whole in a foreign completion. Submitted by the next vmimg_queue_submit() or _poll().
 */
VMIMG_API struct io_uring *vmimg_queue_ring(struct vmimg_queue *queue);
/*
 * Starts requests in order; returns how many were taken (fewer than @count when @depth is reached;
 * -EAGAIN for none), or -EINVAL when the first one is malformed. A request that fails later, also for
 * its range, completes with the error. Every request taken completes exactly once, by vmimg_queue_poll().
 * A disk attached to another queue is reached by forwarding: two hand-overs between threads, some tens
 * of microseconds each.
 */
VMIMG_API int vmimg_queue_submit(struct vmimg_queue *queue, const struct vmimg_request *requests,
				 unsigned count);
/*
 * The same without entering the kernel: what is taken starts with the next vmimg_queue_submit() (also
 * of no requests) or vmimg_queue_poll(). Saves a system call where one of them follows at once; a caller
 * that goes to sleep on the fd instead sleeps for ever.
 */
VMIMG_API int vmimg_queue_prepare(struct vmimg_queue *queue, const struct vmimg_request *requests,
				  unsigned count);
/*
 * Completions, up to @max; waits for at least one up to @timeout_ns (0: no wait; UINT64_MAX: no
 * limit). Returns their number, 0 on time-out.
 */
VMIMG_API int vmimg_queue_poll(struct vmimg_queue *queue, struct vmimg_completion *completions,
			       unsigned max, uint64_t timeout_ns);

enum {
	VMIMG_ATTACH_READ_ONLY = 1 << 0,
};
/*
 * Attaches "VM/DISK", or "COLLECTION@SNAPSHOT/VM/DISK" (read-only only), to @queue, whose thread
 * works on it from now on. One read-write attachment at a time: -EBUSY. Waits for a cut of that disk to
 * end.
 */
VMIMG_API int vmimg_disk_attach(struct vmimg_queue *queue, const char *disk, unsigned flags,
				struct vmimg_error *err, struct vmimg_disk **ret);
/* Makes everything durable and detaches. -EBUSY with requests in flight. A poisoned disk detaches too,
 * with -ENOTRECOVERABLE. */
VMIMG_API int vmimg_disk_detach(struct vmimg_disk *disk);
VMIMG_API uint64_t vmimg_disk_size(struct vmimg_disk *disk); /* bytes; any thread */
/* Bytes of a block of its overlays: requests of this alignment cost least. Any thread. */
VMIMG_API uint32_t vmimg_disk_block_size(struct vmimg_disk *disk);
/* The snapshot that is read through it, whatever has that name by now; "" for a disk. Any thread. */
VMIMG_API void vmimg_disk_snapshot_id(struct vmimg_disk *disk, char id[37]);
/* Ordinal of the disk's newest layer; grows by one a cut. The worker's thread. */
VMIMG_API uint32_t vmimg_disk_layers(struct vmimg_disk *disk);
/*
 * The ordinal of this disk's layer that the snapshot "COLLECTION@NAME" froze: what changed since is
 * what extents say is held by a later layer. -ENOENT: no such snapshot, or the disk is not in it, or
 * it is later than this attachment's. The worker's thread; reads the catalog, as an attach does.
 */
VMIMG_API int vmimg_disk_frozen_layer(struct vmimg_disk *disk, const char *snapshot,
				      struct vmimg_error *err, uint32_t *ret);
/*
 * What changed of an attached disk since a snapshot or reference point, extent by extent (DF-14): more than
 * vmimg_disk_frozen_layer() can tell, after a revert, of a later snapshot, of a reference point.
 */
struct vmimg_baseline;
/*
 * @disk: the name it is, or will be, attached by. @point: "COLLECTION@NAME", "COLLECTION#NAME" or an id.
 * -ENOENT: there is no such disk or point, or the one is not in the other. Any thread; reads files where
 * the point lies on another branch. Attach it soon: until then nothing of that disk is folded.
 */
VMIMG_API int vmimg_baseline_create(struct vmimg_service *svc, const char *disk, const char *point,
				    struct vmimg_error *err, struct vmimg_baseline **ret);
/* On the worker's thread once it was attached. NULL is fine. */
VMIMG_API void vmimg_baseline_destroy(struct vmimg_baseline *baseline);
/* The worker's thread: from here on it is about @disk, attached by that name. */
VMIMG_API void vmimg_baseline_attach(struct vmimg_baseline *baseline, struct vmimg_disk *disk);
/*
 * The worker's thread: of @extent, which VMIMG_EXTENTS told of @offset, the first bytes that are of one
 * kind, at least 1: *@changed. Where nothing can be told any more, changed.
 */
VMIMG_API uint64_t vmimg_baseline_extent(const struct vmimg_baseline *baseline,
					 struct vmimg_disk *disk, uint64_t offset,
					 const struct vmimg_disk_extent *extent, bool *changed);
/* Bytes of memory that the disk's map takes, and blocks it holds in the head; the worker's thread. */
VMIMG_API void vmimg_disk_memory(struct vmimg_disk *disk, uint64_t *map_bytes,
				 uint64_t *head_blocks);

/* --- image files without a store --- */
struct vmimg_image;

/* @format: "raw" or "vmo". @base: image beneath a vmo (raw, qcow2 or vmo), or NULL. @size: bytes, 0
 * with a base: its size. -EEXIST when @path is there. */
VMIMG_API int vmimg_image_create(const char *path, const char *format, const char *base,
				 uint64_t size, struct vmimg_error *err);
/* @base_dir: where parents are looked for besides @path's directory, or NULL. @writable: a vmo or raw. */
VMIMG_API int vmimg_image_open(const char *path, const char *base_dir, bool writable,
			       struct vmimg_error *err, struct vmimg_image **ret);
/* Flushes; 0 or the flush's error. NULL is fine. */
VMIMG_API int vmimg_image_close(struct vmimg_image *image);
VMIMG_API uint64_t vmimg_image_size(struct vmimg_image *image);
VMIMG_API int vmimg_image_read(struct vmimg_image *image, void *buf, size_t length, uint64_t offset,
			       struct vmimg_error *err);
VMIMG_API int vmimg_image_write(struct vmimg_image *image, const void *buf, size_t length,
				uint64_t offset, struct vmimg_error *err);
VMIMG_API int vmimg_image_flush(struct vmimg_image *image, struct vmimg_error *err);
/* JSON: {"filename", "format", "virtual_size", ...}; with @chain an array, top first. */
VMIMG_API int vmimg_image_info(const char *path, const char *base_dir, bool chain,
			       struct vmimg_error *err, char **json);

struct vmimg_extent {
	uint64_t start, length; /* bytes */
	uint8_t state;          /* enum vmimg_extent_state */
	uint32_t depth;         /* layers below the top; 0 the top itself */
};
/* The extent at @offset, as long as it is uniform (within one look-up's reach). */
VMIMG_API int vmimg_image_extent(struct vmimg_image *image, uint64_t offset,
				 struct vmimg_extent *ret, struct vmimg_error *err);

/* How vmimg_image_convert() copies; all zeros are the defaults. */
struct vmimg_convert {
	const char *src_format; /* "raw", "qcow2", "vmo"; NULL: probed */
	const char *dst_format; /* the same; NULL: raw */
	bool compressed;        /* qcow2: clusters deflated, on all processors */
	uint32_t cluster_size;  /* qcow2: bytes, a power of two from 512 to 2 MiB; 0: 64 KiB */
	uint64_t rate_limit;    /* bytes a second; 0: none */
	/* Bytes of the source's size; on the calling thread. Not 0: cancel, with -ECANCELED. */
	int (*progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
};
/*
 * Copies @src with all that is beneath it to the new file @dst, which gets its name when it is whole
 * and durable; on failure nothing is left of it. -EEXIST when @dst is there. @how may be NULL.
 */
VMIMG_API int vmimg_image_convert(const char *src, const char *dst, const struct vmimg_convert *how,
				  struct vmimg_error *err);

/* How vmimg_image_compare() compares; all zeros are the defaults. */
struct vmimg_compare {
	const char *format_a, *format_b; /* "raw", "qcow2", "vmo"; NULL: probed */
	const char *base_dir;            /* parents are looked for here too, or NULL */
	bool strict;                     /* sizes that differ are a difference */
	uint64_t rate_limit;             /* bytes of the disk a second; 0: none */
	/* Bytes of the longer one's size; on the calling thread. Not 0: cancel, with -ECANCELED. */
	int (*progress)(void *arg, uint64_t done, uint64_t total);
	void *arg;
};
struct vmimg_comparison {
	bool same;
	uint64_t first_difference; /* offset of the first byte that differs; UINT64_MAX: none does */
	uint64_t size_a, size_b;   /* bytes */
};
/*
 * Whether two images hold the same, each with all that is beneath it: whatever their formats, zeros
 * where the shorter one has ended. 0 with *@ret, or a negative errno. @how may be NULL.
 */
VMIMG_API int vmimg_image_compare(const char *a, const char *b, const struct vmimg_compare *how,
				  struct vmimg_error *err, struct vmimg_comparison *ret);

/* --- the lease on frozen guests (spec/quiesce.md 4) --- */
/*
 * The program that options.lease_argv names calls this with 0, as the first and last thing it does. @fd:
 * the socket to the service, taken. It returns when every guest is thawed or given up: 0, or a
 * negative errno, -EINVAL when @fd is no such socket. It takes over signals and the working directory.
 */
VMIMG_API int vmimg_lease_run(int fd);

/* --- check (fsck): read-only --- */
enum vmimg_check_result {
	VMIMG_CHECK_SOUND = 0,
	VMIMG_CHECK_FAILED = 1, /* could not check */
	VMIMG_CHECK_CORRUPT = 2,
	VMIMG_CHECK_LEAKS = 3,
	VMIMG_CHECK_NOT_SUPPORTED = 63,
};
/* @path: a store directory or an image file. *@json: findings, each with its rule. */
VMIMG_API int vmimg_check(const char *path, struct vmimg_error *err, char **json);

VMIMG_API const char *vmimg_strerror(uint32_t vmimg_return); /* "Invalid State (5)" and the like */
VMIMG_API const char *vmimg_version(void);

#ifdef __cplusplus
}
#endif

#endif
