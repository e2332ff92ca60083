package smolvm_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/smolvm/smolvm"
)

// A web server in a VM, opened on localhost.
func Example() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close() // stops and deletes it

	if _, err := vm.Run(ctx, "echo hello from the guest >index.html; python3 -m http.server 8000 &"); err != nil {
		log.Fatal(err)
	}
	if err := vm.WaitPort(ctx, 8000); err != nil {
		log.Fatal(err)
	}
	port, err := vm.ExposeLocal(ctx, 8000)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := http.Get(fmt.Sprintf("http://localhost:%d", port))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		log.Fatal(err)
	}
	// Output: hello from the guest
}

// A command that fails is a result, not an error.
func ExampleVM_Run() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx, smolvm.Env("GREETING=hello"))
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	res, err := vm.Run(ctx, "echo $GREETING; exit 3")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q, exit code %d\n", res.Stdout, res.ExitCode)
	// Output: "hello\n", exit code 3
}

// Input and output are streams, as with os/exec.
func ExampleVM_Command() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	cmd := vm.Command(ctx, "tr", "a-z", "A-Z")
	cmd.Stdin = strings.NewReader("loud\n")
	cmd.Stdout = os.Stdout
	if err := cmd.Run(); err != nil {
		log.Fatal(err)
	}
	// Output: LOUD
}

// A busy host port is stepped around, and the caller sees which one is in use.
func ExampleVM_ExposeLocal() {
	ctx := context.Background()
	vm, err := smolvm.Launch(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()

	first, err := vm.ExposeLocal(ctx, 8000, smolvm.HostPort(18000))
	if err != nil {
		log.Fatal(err)
	}
	second, err := vm.ExposeLocal(ctx, 9000, smolvm.HostPort(18000))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first == second)
	if err := vm.UnexposeLocal(ctx, first, 8000); err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(vm.Forwards()), smolvm.PortAvailable(first))
	// Output:
	// false
	// 1 true
}

// A VM that is kept can be opened again, by this program or another.
func ExampleOpen() {
	ctx := context.Background()
	made, err := smolvm.Launch(ctx, smolvm.Name("notes"), smolvm.Keep())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := made.Run(ctx, "echo remember >note"); err != nil {
		log.Fatal(err)
	}
	if err := made.Close(); err != nil { // stops it, but keeps it
		log.Fatal(err)
	}

	vm, err := smolvm.Open(ctx, "notes")
	if err != nil {
		log.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		log.Fatal(err)
	}
	res, err := vm.Run(ctx, "cat note")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(res.Stdout)
	if err := vm.Delete(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: remember
}
