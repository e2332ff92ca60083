package store

import "encoding/json"

// migrateFrom1 reads a record of version 1. It is written as the present version when it is
// next changed.
//
// In version 1 a VM never outlived its owner, the time of the last start was not kept, and
// the interface stood in the record itself.
func migrateFrom1(data []byte) (Record, error) {
	var old struct {
		Record
		Started   bool       `json:"started"`
		Running   bool       `json:"running"`
		Interface *Interface `json:"interface"`
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return Record{}, err
	}
	rec := old.Record
	rec.Version = recordVersion
	if old.Started {
		rec.Started = rec.Created // it was not before that
	}
	if old.Running {
		rec.Run = &Run{Network: rec.Network, Interface: old.Interface}
	}
	return rec, nil
}
