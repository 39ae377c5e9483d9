"""ms-swift registrations (model loader, template, data set, loss, optimizer, tuner): the only importer of swift."""
