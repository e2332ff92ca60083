package share

// The version of the protocol. Every kernel since 4.20 speaks it; what is newer is agreed upon by
// flags, of which we set none.
const (
	protocolMajor = 7
	protocolMinor = 31
	oldestMinor   = 28
)

// opcode says what a request asks for.
type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetattr     opcode = 3
	opSetattr     opcode = 4
	opReadlink    opcode = 5
	opSymlink     opcode = 6
	opMknod       opcode = 8
	opMkdir       opcode = 9
	opUnlink      opcode = 10
	opRmdir       opcode = 11
	opRename      opcode = 12
	opLink        opcode = 13
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opInit        opcode = 26
	opOpendir     opcode = 27
	opReaddir     opcode = 28
	opReleasedir  opcode = 29
	opFsyncdir    opcode = 30
	opAccess      opcode = 34
	opCreate      opcode = 35
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opBatchForget opcode = 42
	opFallocate   opcode = 43
	opReaddirplus opcode = 44
	opRename2     opcode = 45
	opLseek       opcode = 46
)

// Sizes of what the protocol consists of, in bytes.
const (
	inHeaderSize    = 40
	outHeaderSize   = 16
	initOutSize     = 64
	entrySize       = 128
	direntSize      = 24 // without the name
	direntAlignment = 8
)

// Flags of INIT: what the kernel may do.
const (
	initAsyncRead       = 1 << 0
	initAtomicTruncate  = 1 << 3
	initBigWrites       = 1 << 5
	initAutoInvalidate  = 1 << 12
	initReaddirplus     = 1 << 13
	initReaddirplusAuto = 1 << 14
	initAsyncDirectIO   = 1 << 15
	initParallelDirOps  = 1 << 18
	initMaxPages        = 1 << 22
	initCacheSymlinks   = 1 << 23

	// wantedFlags are those that we want where the kernel has them. Locks are not among them: they
	// stay within the guest. Nor is the cache of writes: what a guest has written is on the host.
	wantedFlags = initAsyncRead | initAtomicTruncate | initBigWrites | initAutoInvalidate | initReaddirplus |
		initReaddirplusAuto | initAsyncDirectIO | initParallelDirOps | initMaxPages | initCacheSymlinks
)

// Flags of other requests and replies.
const (
	getattrHandle  = 1 << 0 // GETATTR has a handle
	fsyncDataOnly  = 1 << 0
	writeFromCache = 1 << 0 // pages of a mapping, of whatever handle
	openKeepCache  = 1 << 1 // what the kernel has cached of the file is valid still
)

// What SETATTR is to set.
const (
	setMode     = 1 << 0
	setUID      = 1 << 1
	setGID      = 1 << 2
	setSize     = 1 << 3
	setAtime    = 1 << 4
	setMtime    = 1 << 5
	setHandle   = 1 << 6 // there is a handle
	setAtimeNow = 1 << 7
	setMtimeNow = 1 << 8
)
