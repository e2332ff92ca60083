package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/smolvm/smolvm"
	"github.com/smolvm/smolvm/internal/testworld"
)

const (
	foldersRounds = 5
	// folderFiles is how many small files there are, and folderSize what the large one has, in MiB.
	folderFiles = 1000
	folderSize  = 64
)

// folderWork is what is done in a folder, as a shell has it. Nothing of the folder is in the
// guest's memory before.
func folderWork() [][2]string {
	return [][2]string{
		{fmt.Sprintf("read %d MiB", folderSize), "cat large >/dev/null"},
		{fmt.Sprintf("write %d MiB, with `fsync`", folderSize), fmt.Sprintf("dd if=/dev/zero of=new bs=1M count=%d conv=fsync 2>/dev/null", folderSize)},
		{fmt.Sprintf("`stat` of %d files by name", folderFiles), fmt.Sprintf(`python3 -c 'import os; [os.stat("many/%%d" %% i) for i in range(%d)]'`, folderFiles)},
		{fmt.Sprintf("`ls -l` of %d files", folderFiles), "ls -l many >/dev/null"},
		{fmt.Sprintf("read %d files", folderFiles), "cat many/* >/dev/null"},
		{fmt.Sprintf("copy %d files", folderFiles), "cp -r many copy"},
	}
}

// The places that are compared, as the guest sees them.
const (
	ownDisk      = "/root/bench"
	sharedFolder = "/shared"
)

// measureFolders measures a folder of the host beside the VM's own disk.
func measureFolders(ctx context.Context, _ settings) (_ string, err error) {
	on, err := hostLine()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(testworld.Scratch, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return "", err
	}
	vm, err := smolvm.Launch(ctx, smolvm.DataDir(testworld.Scratch+"/folders"), smolvm.Share(smolvm.SharedFolder{Host: folder, Guest: sharedFolder}))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	s := samples[time.Duration]{}
	for i := range foldersRounds {
		for _, place := range []string{ownDisk, sharedFolder} {
			if err := workIn(ctx, vm, place, s); err != nil {
				return "", err
			}
		}
		progress("folders %d of %d", i+1, foldersRounds)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Shared folders\n\nMade by `make bench` (this part alone: `make bench BENCHFLAGS='-only %s'`): %d rounds, medians. %s, a VM with one processor; each time is that of a `Run`.\n\n",
		partFolders, foldersRounds, on)
	fmt.Fprintf(&b, "| what, nothing of it cached | in a shared folder | on the VM's disk | ÷ that |\n|---|---:|---:|---:|\n")
	for _, work := range folderWork() {
		shared, own := s.median(sharedFolder+work[0]), s.median(ownDisk+work[0])
		fmt.Fprintf(&b, "| %s | %s | %s | %.1f |\n", work[0], ms(shared), ms(own), over(shared, own))
	}
	return b.String(), nil
}

// workIn does each work once in a directory of the guest, and leaves it empty.
func workIn(ctx context.Context, vm *smolvm.VM, dir string, s samples[time.Duration]) error {
	in := func(script string) error {
		_, err := vm.Run(ctx, "cd "+dir+" && "+script)
		return err
	}
	fill := fmt.Sprintf("head -c %dM /dev/urandom >large && mkdir many && for i in $(seq 0 %d); do echo $i >many/$i; done", folderSize, folderFiles-1)
	if _, err := vm.Run(ctx, "mkdir -p "+dir); err != nil {
		return err
	}
	if err := in(fill); err != nil {
		return err
	}
	for _, work := range folderWork() {
		if err := in("sync; echo 3 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		if err := timed(s, dir+work[0], func() error { return in(work[1]) }); err != nil {
			return err
		}
	}
	return in("rm -r large new many copy")
}
