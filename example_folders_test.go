package smolvm_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/smolvm/smolvm"
)

// A VM works on a folder of the host, and cannot change another one.
func ExampleShare() {
	ctx := context.Background()
	project, err := os.MkdirTemp("", "project")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(project)
	vm, err := smolvm.Launch(ctx, smolvm.Share(
		smolvm.SharedFolder{Host: project, Guest: "/work"},
		smolvm.SharedFolder{Host: project, Guest: "/original", ReadOnly: true},
	))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	result, err := vm.Run(ctx, "cd /work && echo made in the guest >note && ! touch /original/note 2>&1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(result.Stdout)
	note, err := os.ReadFile(filepath.Join(project, "note"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(note))
	// Output:
	// touch: cannot touch '/original/note': Read-only file system
	// made in the guest
}
