package qemu

const hasTSC = true

// readTSC returns the processor's time stamp counter.
func readTSC() uint64
