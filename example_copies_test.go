package smolvm_test

import (
	"context"
	"fmt"
	"log"

	"github.com/smolvm/smolvm"
)

// What is dear to set up is set up once, and every trial begins from there.
func ExampleVM_Fork() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Memory(256))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	if _, err := vm.Run(ctx, "echo ready >/root/state"); err != nil {
		log.Fatal(err)
	}
	copies, err := vm.Fork(ctx, 2)
	if err != nil {
		log.Fatal(err)
	}
	for i, c := range copies {
		defer c.Close()
		res, err := c.Run(ctx, fmt.Sprintf("echo trial %d >>/root/state; cat /root/state", i))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q\n", res.Stdout)
	}
	// Output:
	// "ready\ntrial 0\n"
	// "ready\ntrial 1\n"
}

// A VM is put aside, with what runs in it.
func ExampleVM_Suspend() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Memory(256))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	if _, err := vm.Run(ctx, "echo only in memory >/dev/shm/note"); err != nil {
		log.Fatal(err)
	}
	if err := vm.Suspend(ctx); err != nil {
		log.Fatal(err)
	}
	status, err := vm.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status)
	if err := vm.Start(ctx); err != nil {
		log.Fatal(err)
	}
	res, err := vm.Run(ctx, "cat /dev/shm/note")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	// Output:
	// suspended
	// only in memory
}

// A VM is put back to what it was.
func ExampleVM_Snapshot() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Memory(256))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	snapshot, err := vm.Snapshot(ctx, "")
	if err != nil {
		log.Fatal(err)
	}
	defer smolvm.RemoveSnapshot(ctx, snapshot.Name)
	if _, err := vm.Run(ctx, "rm -rf /etc"); err != nil {
		log.Fatal(err)
	}
	if err := vm.Kill(ctx); err != nil {
		log.Fatal(err)
	}
	if err := vm.Revert(ctx, snapshot.Name); err != nil {
		log.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		log.Fatal(err)
	}
	res, err := vm.Run(ctx, "ls -d /etc")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	// Output: /etc
}

// VMs wait for those who need one at once.
func ExamplePool() {
	pool, err := smolvm.NewPool(2, smolvm.Memory(256))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	ctx := context.Background()
	vm, err := pool.Get(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	res, err := vm.Run(ctx, "echo at your service")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	// Output: at your service
}
