package rootfs

import (
	"archive/tar"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smolvm/smolvm/internal/image/ext4"
)

// model is a tree as a map of paths, on which layers are applied in the simplest way: what
// a layer hides goes first, whatever its order, and then what it has is added.
type model map[string]*modelNode

type modelNode struct {
	item  item
	links *int
}

func (m model) remove(name string) {
	for other, n := range m {
		if other == name || strings.HasPrefix(other, name+"/") {
			*n.links--
			delete(m, other)
		}
	}
}

func (m model) put(name string, n *modelNode) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if m[dir] == nil {
			made := item{Header: tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}}
			m[dir] = &modelNode{item: made, links: new(int)}
			*m[dir].links++
		}
	}
	old := m[name]
	if old != nil && old.item.Typeflag == tar.TypeDir && n.item.Typeflag == tar.TypeDir {
		old.item = n.item
		return
	}
	m.remove(name)
	m[name] = n
	*n.links++
}

// generator makes layers and what they must come to.
type generator struct {
	*rand.Rand
	model model
	made  int
}

func (g *generator) name() string {
	parts := make([]string, 1+g.IntN(4))
	for i := range parts {
		parts[i] = string(rune('a' + g.IntN(5)))
	}
	return strings.Join(parts, "/")
}

// item makes an entry of any kind but a link.
func (g *generator) item(name string) item {
	g.made++
	i := item{Header: tar.Header{
		Name: name, Mode: int64(g.IntN(0o10000)), Uid: g.IntN(3) * 70000, Gid: g.IntN(100),
		ModTime: time.Unix(g.Int64N(1<<33), g.Int64N(1e9)),
	}}
	switch g.IntN(8) {
	case 0, 1:
		i.Typeflag = tar.TypeDir
	case 2:
		i.Typeflag, i.Linkname = tar.TypeSymlink, strings.Repeat("target", 1+g.IntN(30))
		i.Mode = 0o777
	case 3:
		i.Typeflag = tar.TypeFifo
	case 4:
		i.Typeflag, i.Devmajor, i.Devminor = tar.TypeChar, 1+g.Int64N(300), g.Int64N(300)
	default:
		i.Typeflag = tar.TypeReg
		i.data = strings.Repeat(fmt.Sprint(g.made, " "), g.IntN(10_000))
		if g.IntN(3) == 0 {
			i.data = strings.Repeat("\x00", g.IntN(200_000)) + i.data
		}
		i.Size = int64(len(i.data))
	}
	if g.IntN(3) == 0 {
		i.PAXRecords = map[string]string{extendedRecord + "user.number": fmt.Sprint(g.made)}
		if g.IntN(3) == 0 {
			i.PAXRecords[extendedRecord+"trusted.large"] = strings.Repeat("v", g.IntN(3000))
		}
	}
	return i
}

// layer makes a layer and applies it to the model.
func (g *generator) layer() []item {
	var markers, items []item
	before := maps.Clone(g.model)
	for range g.IntN(4) {
		name := g.name()
		if parent := g.model[path.Dir(name)]; parent != nil && parent.item.Typeflag != tar.TypeDir {
			continue
		}
		if g.IntN(2) == 0 {
			markers = append(markers, item{Header: tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteout+path.Base(name))}})
			g.model.remove(name)
			continue
		}
		if n := before[name]; n == nil || n.item.Typeflag != tar.TypeDir {
			continue
		}
		markers = append(markers, item{Header: tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + whiteoutOpaque}})
		for other := range maps.Clone(g.model) {
			if strings.HasPrefix(other, name+"/") {
				g.model.remove(other)
			}
		}
	}
	for range 3 + g.IntN(15) {
		name := g.name()
		if !g.may(name, before) {
			continue
		}
		files := g.files()
		if len(files) > 0 && g.IntN(4) == 0 {
			target := files[g.IntN(len(files))]
			items = append(items, item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}})
			if n := g.model[target]; g.model[name] != n {
				g.model.put(name, n)
			}
			continue
		}
		i := g.item(name)
		items = append(items, i)
		g.model.put(name, &modelNode{item: i, links: new(int)})
	}
	// A marker may be anywhere.
	for _, m := range markers {
		items = slices.Insert(items, g.IntN(len(items)+1), m)
	}
	return items
}

// may tells whether all that a name is in is a directory, or nothing, whatever is hidden.
func (g *generator) may(name string, before model) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		for _, m := range []model{g.model, before} {
			if n := m[dir]; n != nil && n.item.Typeflag != tar.TypeDir {
				return false
			}
		}
	}
	return true
}

func (g *generator) files() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(g.model)) {
		if g.model[name].item.Typeflag != tar.TypeDir {
			names = append(names, name)
		}
	}
	return names
}

// compare compares a tree with the model.
func (m model) compare(t *testing.T, tree *Tree) {
	got := nodes(tree)
	delete(got, ".")
	inodes := make(map[*modelNode]int)
	for name, n := range m {
		g, found := got[name]
		h := n.item.Header
		if !found {
			t.Errorf("%q is missing", name)
			continue
		}
		kind := map[byte]uint32{tar.TypeReg: ext4.TypeRegular, tar.TypeDir: ext4.TypeDirectory, tar.TypeSymlink: ext4.TypeSymlink, tar.TypeFifo: ext4.TypeFIFO, tar.TypeChar: ext4.TypeCharacter}[h.Typeflag]
		if g.Mode != kind|uint32(h.Mode) || g.UID != h.Uid || g.GID != h.Gid || g.Size != h.Size || !g.Modified.Equal(h.ModTime) || g.Links != *n.links {
			t.Errorf("%q is %+v, not %+v with %d links", name, g, h, *n.links)
		}
		if h.Typeflag == tar.TypeSymlink && g.Target != h.Linkname || h.Typeflag == tar.TypeChar && g.Device != fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor) {
			t.Errorf("%q is %+v, not %+v", name, g, h)
		}
		if len(g.Extended) != len(h.PAXRecords) {
			t.Errorf("%q has the attributes %q, not %q", name, g.Extended, h.PAXRecords)
		}
		if i, seen := inodes[n]; seen && i != g.Inode {
			t.Errorf("%q is another file", name)
		}
		inodes[n] = g.Inode
	}
	if len(got) != len(m) {
		t.Errorf("%d names, not %d", len(got), len(m))
	}
}

// Whatever layers there are, the tree is what they come to, and so is the filesystem.
func TestRandomLayers(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	const rounds, filesystems = 150, 8
	for round := range uint64(rounds) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, round)), model: make(model)}
		var layers [][]item
		var list []Layer
		for range 1 + g.IntN(6) {
			layers = append(layers, g.layer())
			data := compressed(t, []string{"none", "gzip", "zstd"}[g.IntN(3)], packed(t, layers[len(layers)-1]...))
			list = append(list, layerOf(data))
		}
		tree, err := Read(t.Context(), list, Limits{}, nil)
		if err == nil {
			g.model.compare(t, tree)
			consistent(t, tree)
		}
		if err == nil && round < filesystems {
			got := written(t, tree, 64<<20)
			matches(t, tree, got)
			for name, n := range g.model {
				if n.item.Typeflag == tar.TypeReg && got[name].SHA256 != sum(n.item.data) {
					t.Errorf("%q has other contents", name)
				}
			}
		}
		if err != nil || t.Failed() {
			for _, items := range layers {
				t.Log("layer")
				for _, i := range items {
					t.Logf("%c %q %q", i.Typeflag, i.Name, i.Linkname)
				}
			}
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
	}
}
